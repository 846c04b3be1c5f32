"""The server's side of a deployment, and the runtimes that use it."""

from sumfold.server.loopback import Loopback as Loopback

__all__ = ["Loopback"]

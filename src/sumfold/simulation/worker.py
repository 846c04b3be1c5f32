"""One worker process: ``python -m sumfold.simulation.worker FD PARENT FOLDER``. It never sees the user's main program.

It is given functions and messages once, and then clients one after the other; it ends with its parent, however that
dies.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from sumfold.core.host import attempt
from sumfold.simulation.pipe import load_file, packed, receive, remember, send, write

__all__: list[str] = []

_GLANCE = 0.5
"""Seconds between two looks at whether the parent lives."""


def work(pipe: Connection) -> None:
    """Serve until the pipe closes."""
    functions: dict[bytes, Callable[..., Any]] = {}
    run: Callable[..., Any] | None = None
    message: Any = None
    while True:
        kind, *rest = receive(pipe)
        if kind == "paths":
            sys.path[:] = rest[0]
            os.environ.pop("PYTHONPATH")  # it was for this process alone
            os.environ.update({} if rest[1] is None else {"PYTHONPATH": rest[1]})
            settings: Any = jax.config
            settings.update("jax_enable_x64", rest[2])
        elif kind == "job":
            digest, code, path, head, sizes = rest
            try:
                if code is not None:
                    remember(functions, digest, pickle.loads(code))
                run, message = functions[digest], load_file(Path(path), head, sizes)
            except Exception as error:
                module = error.name if isinstance(error, ModuleNotFoundError) else None
                send(pipe, ("unusable", module, traceback.format_exc()))
            else:
                send(pipe, ("loaded",))
        else:
            place, data, key, memory = rest
            assert run is not None
            ended = attempt(run, message, data, key, memory)
            try:
                answer = packed(("ended", place, ended))
            except Exception:  # what it returned cannot be sent
                answer = packed(("unusable", None, traceback.format_exc()))
            write(pipe, answer)


def _outlive_nobody(parent: int, folder: str) -> None:
    """End when the parent is gone, even in the middle of a client, and leave no file behind."""
    while os.getppid() == parent:
        time.sleep(_GLANCE)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to decide about
    pipe, parent, folder = Connection(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    watch = threading.Thread(target=_outlive_nobody, args=(parent, folder), daemon=True)
    watch.start()
    try:
        work(pipe)
    except (EOFError, OSError):  # the parent closed the pipe, and then ends this process; or is gone
        watch.join(timeout=10 * _GLANCE)


if __name__ == "__main__":
    main()

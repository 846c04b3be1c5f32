"""The engine: runtimes that compute Σ on the local machine. It knows the core and no algorithm."""

from sumfold.simulation.engine import Simulation as Simulation

__all__ = ["Simulation"]

"""The engine: runtimes that compute Σ on the local machine. It knows the core and no algorithm."""

from sumfold.simulation.engine import Simulation as Simulation
from sumfold.simulation.processes import Processes as Processes
from sumfold.simulation.ray import Ray as Ray
from sumfold.simulation.workers import Workers as Workers

__all__ = ["Processes", "Ray", "Simulation", "Workers"]

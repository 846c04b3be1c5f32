"""Models: adapters from functions and frameworks to one record."""

from sumfold.core.files import load as load
from sumfold.core.files import save as save
from sumfold.models.equinox import from_equinox as from_equinox
from sumfold.models.flax import from_flax as from_flax
from sumfold.models.functions import from_functions as from_functions
from sumfold.models.host import HostModel as HostModel
from sumfold.models.keras import from_keras as from_keras
from sumfold.models.mixed_precision import mixed_precision as mixed_precision
from sumfold.models.model import Model as Model
from sumfold.models.sklearn import from_sklearn as from_sklearn
from sumfold.models.torch import from_torch as from_torch
from sumfold.models.torch_state import StateDict as StateDict

__all__ = [
    "HostModel",
    "Model",
    "StateDict",
    "from_equinox",
    "from_flax",
    "from_functions",
    "from_keras",
    "from_sklearn",
    "from_torch",
    "load",
    "mixed_precision",
    "save",
]

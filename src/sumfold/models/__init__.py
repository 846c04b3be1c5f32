"""Models: adapters from functions and frameworks to one record."""

from sumfold.models.functions import from_functions as from_functions
from sumfold.models.model import Model as Model

__all__ = ["Model", "from_functions"]

"""The records that every algorithm is made of, and the driver that plays a round."""

from sumfold.core.batching import Batching as Batching
from sumfold.core.client import Briefing as Briefing
from sumfold.core.client import Upload as Upload
from sumfold.core.coordinates import by_coordinate as by_coordinate
from sumfold.core.coordinates import sorted_rows as sorted_rows
from sumfold.core.driver import State as State
from sumfold.core.group import Group as Group
from sumfold.core.group import Stacked as Stacked
from sumfold.core.group import add as add
from sumfold.core.group import fold as fold
from sumfold.core.group import maximum as maximum
from sumfold.core.group import minimum as minimum
from sumfold.core.group import modular as modular
from sumfold.core.group import stack as stack
from sumfold.core.round import Batch as Batch
from sumfold.core.round import HostWork as HostWork
from sumfold.core.round import Measured as Measured
from sumfold.core.round import Phase as Phase
from sumfold.core.round import Report as Report
from sumfold.core.round import Round as Round
from sumfold.core.round import Task as Task
from sumfold.core.round import Work as Work
from sumfold.core.stage import Bound as Bound
from sumfold.core.stage import Contribution as Contribution
from sumfold.core.stage import Stage as Stage
from sumfold.core.stage import chain as chain
from sumfold.core.store import ClientStore as ClientStore

__all__ = [
    "Batch",
    "Batching",
    "Bound",
    "ClientStore",
    "Contribution",
    "Group",
    "HostWork",
    "Measured",
    "Phase",
    "Report",
    "Round",
    "Stacked",
    "Stage",
    "State",
    "Task",
    "Work",
    "add",
    "by_coordinate",
    "chain",
    "fold",
    "maximum",
    "minimum",
    "modular",
    "sorted_rows",
    "stack",
]

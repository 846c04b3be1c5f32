"""Who this process is among those that a launcher started, as the launcher's environment says.

Sumfold's own launcher, Slurm's ``srun`` and Open MPI's or MPICH's ``mpirun`` number the processes that they start;
where none of them did, the caller says it, as for an indexed job on Kubernetes.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["ADDRESS", "RANK", "SIZE", "Membership", "accelerators", "launched"]

ADDRESS, RANK, SIZE = "SUMFOLD_COORDINATOR", "SUMFOLD_RANK", "SUMFOLD_PROCESSES"
"""Environment variables of Sumfold's own launcher; they count more than any other."""

_FIRST_PORT, _PORTS = 61440, 4096
"""Ports that a job's number is mapped to, above those that systems give out by themselves."""


class Membership(NamedTuple):
    """One process of a gang, before it has found the others.

    Attributes:
        coordinator: ``host:port`` of the first process.
        rank: which process this is, from 0.
        size: how many there are.
        devices: numbers of the accelerators of this machine that are this process's; None is all.

    Example:
        >>> Membership("node1:5000", 3, 8).size
        8
    """

    coordinator: str
    rank: int
    size: int
    devices: tuple[int, ...] | None = None


class Numbered(NamedTuple):
    """What a launcher says: which process this is, of how many, which one on its machine, and where the first is."""

    rank: int
    size: int
    local: int | None
    coordinator: str | None


def launched(environment: Mapping[str, str] | None = None) -> Numbered | None:
    """What the environment says of this process; None in a process that no launcher started.

    Args:
        environment: `os.environ` unless given.

    Example:
        >>> launched({"SUMFOLD_RANK": "1", "SUMFOLD_PROCESSES": "2", "SUMFOLD_COORDINATOR": "127.0.0.1:5000"})
        Numbered(rank=1, size=2, local=None, coordinator='127.0.0.1:5000')
        >>> launched({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7",
        ...           "SLURM_STEP_NODELIST": "node[002-005],gpu1"})
        Numbered(rank=3, size=8, local=1, coordinator='node002:61447')
    """
    given = os.environ if environment is None else environment

    def number(*names: str) -> int | None:
        return next((int(given[name]) for name in names if given.get(name, "").isdigit()), None)

    rank, size = number(RANK), number(SIZE)
    if rank is not None and size is not None:
        return Numbered(rank, size, number("SUMFOLD_LOCAL_RANK"), given.get(ADDRESS))
    if "SLURM_STEP_NODELIST" in given:
        rank, size = number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
        if rank is not None and size is not None:
            first = _first_node(given["SLURM_STEP_NODELIST"])
            job = number("SLURM_JOB_ID") or 0
            return Numbered(rank, size, number("SLURM_LOCALID"), f"{first}:{_FIRST_PORT + job % _PORTS}")
    rank = number("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
    size = number("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    if rank is not None and size is not None:
        local = number("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
        return Numbered(rank, size, local, _of_mpi(given, size))
    return None


def _of_mpi(given: Mapping[str, str], size: int) -> str | None:
    """Where all processes run on one machine, an address that they agree on by themselves; None otherwise."""
    local = given.get("OMPI_COMM_WORLD_LOCAL_SIZE") or given.get("MPI_LOCALNRANKS")
    job = given.get("PMIX_NAMESPACE") or given.get("PMI_ID") or given.get("OMPI_MCA_orte_hnp_uri", "").split(";")[0]
    if local != str(size):
        return None
    return f"127.0.0.1:{_FIRST_PORT + zlib.crc32(job.encode()) % _PORTS}"


def _first_node(nodes: str) -> str:
    """The first of a Slurm list: ``node[002-005],gpu1`` -> ``node002``."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    return nodes if found is None else found[1] + (found[2] or "")


def accelerators() -> int:
    """How many NVIDIA devices this process sees, without waking JAX."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() and one.strip() != "-1"])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))

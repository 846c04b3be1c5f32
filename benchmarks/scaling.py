"""Rounds by number of streams, of lanes and of processes: what each of them gives on this machine.

    python benchmarks/scaling.py [--workload w1 …] [--repeats 1] [--out FILE.md]

Each row is a run of `sumfold bench` with options for Sumfold alone: the same data, weights and cohorts. Processes are
hired by `sf.Processes(n)` and share the machine's cores; more of them than cores cannot help, and show what they cost.
`benchmarks/cores.py` says what the cores give together to programs that share nothing. The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

STREAMS = [["kernel=sequential", f"streams={n}"] for n in (1, 2)]
PROCESSES = [[f"processes={n}"] for n in (1, 2, 4)]
LANES = [["kernel=lanes", f"lanes={n}"] for n in (1, 4, 16, 64)]
CONFIGURATIONS = {
    "w1": [*STREAMS, *PROCESSES, *LANES],
    "w2": [*STREAMS, *PROCESSES],
    "w4": [*STREAMS, *PROCESSES, *LANES],
}


def ran(workload: str, options: list[str], repeats: int, cache: str | None) -> dict[str, object]:
    """The row of one configuration."""
    command = [sys.executable, "-m", "sumfold", "bench", "--json", "--workload", workload, "--contestant", "sumfold"]
    command += ["--repeats", str(repeats), *(f"--option={option}" for option in options)]
    command += ["--cache", cache] if cache else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (row,) = json.loads(done.stdout.splitlines()[-1])["tables"][workload]
    return {"workload": workload, "options": " ".join(options), **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cache", help="generated data, as for sumfold bench")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    lines = ["| workload | options | round, ms | first round, s | memory, MiB |", "|---|---|---:|---:|---:|"]
    print(*lines, sep="\n")
    for workload in chosen.workload:
        for options in CONFIGURATIONS[workload]:
            row = ran(workload, options, chosen.repeats, chosen.cache)
            figures = (row["round_ms"], row["first_s"], row["memory_mib"])
            lines.append(
                f"| {workload} | {row['options']} | " + " | ".join(f"{figure:.4g}" for figure in figures) + " |"
            )
            print(lines[-1], flush=True)
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

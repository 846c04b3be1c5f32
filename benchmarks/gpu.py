"""The engine on a GPU: kernels and numbers of lanes on some workloads, and PyTorch by hand beside them.

    python benchmarks/gpu.py [--workload w1 w2] [--lanes 8 32 128] [--repeats 3] [--out gpu.jsonl]

Prints the median round of the sequential stream, of so many lanes, of what the engine chooses by itself, and of loops
in PyTorch on the same GPU; every run is a process of its own. ``--platform cpu`` shows that everything runs: no numbers
of a GPU.
"""

import argparse
import json
import subprocess
import sys
from statistics import median

from sumfold.bench.peers import CONTESTANTS


def lines(workload: str, contestant: str, given: argparse.Namespace, *options: str) -> list[dict]:
    """The runs of one setting, as `sumfold bench` reports them."""
    command = [sys.executable, "-m", "sumfold", "bench", "--json", "--contestant", contestant, "--workload", workload]
    command += ["--platform", given.platform, "--repeats", str(given.repeats)]
    command += [word for option in options for word in ("--option", option)]
    command += [
        word for name in ("peers", "cache") if getattr(given, name) for word in (f"--{name}", given.__dict__[name])
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return [line for line in found if "workload" in line]


def told(setting: str, ran: list[dict]) -> str:
    """One line for people."""
    rounds = [1e3 * second for line in ran for second in line.get("seconds", ())[2:]]
    if not rounds:
        return f"{setting:18}  {ran[0]['error'] if ran else 'did not run'}"
    return (
        f"{setting:18} {median(rounds):9.2f} ms a round, first {ran[0]['seconds'][0]:6.2f} s, loss {ran[0]['loss']:.6g}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--lanes", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--workload", nargs="*", default=["w1", "w2", "w3", "w4", "w5"])
    parser.add_argument("--contestant", nargs="*", default=["torch", "torch-vectorised"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", metavar="DIR", help="as in `sumfold bench`")
    parser.add_argument("--cache", metavar="DIR", help="as in `sumfold bench`")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    settings = {"chosen": ("sumfold",), "sequential": ("sumfold", "kernel=sequential")}
    settings |= {f"{number} lanes": ("sumfold", f"lanes={number}") for number in given.lanes}
    settings |= {name: (name,) for name in given.contestant}
    kept = []
    for workload in given.workload:
        for setting, (contestant, *options) in settings.items():
            if workload not in CONTESTANTS[contestant].workloads:
                continue
            ran = lines(workload, contestant, given, *options)
            kept += [{**line, "setting": setting} for line in ran]
            print(f"{workload:4} {told(setting, ran)}", flush=True)
    print(*dict.fromkeys(f"{line['device']}: {line['versions']}" for line in kept if line.get("device")), sep="\n")
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)


if __name__ == "__main__":
    main()

"""The engine on an accelerator: kernels and lanes on W1, W2 and W4, each in a process of its own.

    python benchmarks/gpu.py [--lanes 4 8 16 32 64] [--repeats 3] [--out gpu.jsonl]

Prints the median round of the sequential stream, of so many lanes, and of what the engine chooses by itself. It runs on
a CPU too, where it says so: those are then no numbers of an accelerator.
"""

import argparse
import json
import subprocess
import sys
from statistics import median

import jax


def lines(workload: str, repeats: int, *options: str) -> list[dict]:
    """The runs of one setting, as `sumfold bench` reports them."""
    command = [sys.executable, "-m", "sumfold", "bench", "--json", "--contestant", "sumfold", "--workload", workload]
    command += ["--repeats", str(repeats), *(word for option in options for word in ("--option", option))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [line for line in found if line.get("seconds")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="*", default=[4, 8, 16, 32, 64])
    parser.add_argument("--workload", nargs="*", default=["w1", "w2", "w4"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
    settings = {"chosen": (), "sequential": ("kernel=sequential",)}
    settings |= {f"{number} lanes": (f"lanes={number}",) for number in given.lanes}
    kept = []
    for workload in given.workload:
        for name, options in settings.items():
            ran = lines(workload, given.repeats, *options)
            kept += [{**line, "setting": name, "device": device.device_kind} for line in ran]
            rounds = [1e3 * second for line in ran for second in line["seconds"][2:]]
            print(
                f"{workload}  {name:12}  {f'{median(rounds):9.2f} ms a round' if rounds else 'did not run'}", flush=True
            )
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)


if __name__ == "__main__":
    main()

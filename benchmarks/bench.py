"""``sumfold bench`` from the repository: python benchmarks/bench.py --workload w1 --quick."""

import sys

from sumfold.cli.main import app

app(["bench", *sys.argv[1:]], prog_name="sumfold")

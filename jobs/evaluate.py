"""Ray job entry point: `python jobs/evaluate.py RECIPE [KEY=VALUE ...]` is `dkd evaluate`, on its cluster."""

import sys

from distributed_kd.cli import main

main(["evaluate", *sys.argv[1:]])

"""Ray job entry point: `python jobs/evaluate.py RECIPE [KEY=VALUE ...]` is `dkd evaluate`, on the cluster it runs in."""

import sys

from distributed_kd.cli import main

main(["evaluate", *sys.argv[1:]])

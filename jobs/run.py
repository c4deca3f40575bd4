"""Ray job entry point: `python jobs/run.py RECIPE [KEY=VALUE ...]` is `dkd run`, on the cluster it runs in."""

import sys

from distributed_kd.cli import main

main(["run", *sys.argv[1:]])

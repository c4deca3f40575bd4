"""Ray job entry point: `python jobs/prepare.py RECIPE [KEY=VALUE ...]` is `dkd prepare`, on the cluster it runs in."""

import sys

from distributed_kd.cli import main

main(["prepare", *sys.argv[1:]])

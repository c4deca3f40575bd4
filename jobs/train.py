"""Ray job entry point: `python jobs/train.py RECIPE [KEY=VALUE ...]` is `dkd train`, on the cluster it runs in."""

import sys

from distributed_kd.cli import main

main(["train", *sys.argv[1:]])

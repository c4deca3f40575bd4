"""Ray job entry point: `python jobs/cache.py RECIPE [KEY=VALUE ...]` is `dkd cache`, on the cluster it runs in."""

import sys

from distributed_kd.cli import main

main(["cache", *sys.argv[1:]])

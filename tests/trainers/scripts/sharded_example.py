"""Run an example, whose path and options follow, with weights that are sharded on CPUs too."""

import runpy
import sys

import sharding

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sharding.end()

"""Train with DivBS under accelerate: accelerate launch examples/divbs.py --config examples/divbs_digits.yaml

Takes the options of `hf-ext train divbs`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "divbs", *sys.argv[1:]]))

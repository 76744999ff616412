"""Train with DISAM under accelerate: accelerate launch examples/disam.py --config examples/disam_digits.yaml

Takes the options of `hf-ext train disam`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "disam", *sys.argv[1:]]))

"""Train a MoLA adapter under accelerate: accelerate launch examples/mola.py --config examples/mola_digits.yaml

Takes the options of `hf-ext train mola`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "mola", *sys.argv[1:]]))

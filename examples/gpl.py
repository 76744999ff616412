"""Train on a graph under accelerate: accelerate launch examples/gpl.py --config examples/gpl_digits.yaml

Takes the options of `hf-ext train gpl`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "gpl", *sys.argv[1:]]))

"""Train a FER matcher under accelerate: accelerate launch examples/fer.py --config examples/fer_digits.yaml

Takes the options of `hf-ext train fer`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "fer", *sys.argv[1:]]))

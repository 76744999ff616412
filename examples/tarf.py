"""Unlearn under accelerate: accelerate launch examples/tarf.py --config examples/tarf_digits.yaml

Takes the options of `hf-ext train tarf`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "tarf", *sys.argv[1:]]))

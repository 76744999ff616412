"""Train with FedLESAM in a federation here: python examples/fedlesam.py --config examples/fedlesam_digits.yaml

Takes the options of `hf-ext train fedlesam`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "fedlesam", *sys.argv[1:]]))

"""Train with FedGELA in a federation here: python examples/fedgela.py --config examples/fedgela_digits.yaml

Takes the options of `hf-ext train fedgela`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "fedgela", *sys.argv[1:]]))

"""Train a recommender under accelerate: accelerate launch examples/causald.py --config examples/causald_shop.yaml

Takes the options of `hf-ext train causald`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "causald", *sys.argv[1:]]))

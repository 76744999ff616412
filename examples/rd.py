"""Train a student with a teacher under accelerate: accelerate launch examples/rd.py --config examples/rd_digits.yaml

Takes the options of `hf-ext train rd`; `--help` lists them.
"""

import sys

from hf_ext.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "rd", *sys.argv[1:]]))

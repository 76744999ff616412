"""The `hf-ext` command."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

#: methods with commands of their own, in `hf_ext/commands/NAME.py`: `train(argv)` and `demo(out, seeds)`
METHODS = ("mola",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 (a mistake in the input) or 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(argv), debug="--debug" in argv)


def guarded(command: Callable[[], None], *, debug: bool = False) -> int:
    """Run a command and turn a user's mistake into one line on stderr; `debug` shows the traceback."""
    try:
        command()
    except KeyboardInterrupt:
        print("hf-ext: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"hf-ext: error: {error}\n(--debug shows where)", file=sys.stderr)
        return 2
    return 0


def _dispatch(argv: list[str]) -> None:
    from hf_ext import __version__

    parser = argparse.ArgumentParser(
        prog="hf-ext",
        description="Research methods as everyday tools for users of transformers, peft and accelerate.",
        epilog=f"methods: {', '.join(METHODS)}",
    )
    parser.add_argument("--version", action="version", version=f"hf-ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a method on embedded real data, next to its baselines (minutes, nothing is downloaded)",
        description="Train a method on embedded real data, next to its baselines; leaves a folder ready for the Hub.",
    )
    demo.add_argument("method", nargs="?", default="mola", choices=METHODS, help="default: mola")
    demo.add_argument("--out", help="folder for the result; default: ./hf_ext_demo_METHOD")
    demo.add_argument("--seeds", type=int, default=3, help="runs of every system; default: 3")
    demo.add_argument("--steps", type=int, default=250, help="training steps of every run; default: 250")
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")

    train = commands.add_parser(
        "train",
        help="train a method on your model and data",
        description="Train a method on your model and data. `hf-ext train METHOD --help` lists a method's options.",
        add_help=False,
    )
    train.add_argument("method", nargs="?", choices=METHODS, help="the method to train with")

    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "train":
        if arguments.method is None:
            train.print_help()
            return
        importlib.import_module(f"hf_ext.commands.{arguments.method}").train(rest)
    else:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        out = arguments.out or f"hf_ext_demo_{arguments.method}"
        method = importlib.import_module(f"hf_ext.commands.{arguments.method}")
        method.demo(out, seeds=arguments.seeds, steps=arguments.steps)


if __name__ == "__main__":
    sys.exit(main())

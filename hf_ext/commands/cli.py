"""The `hf-ext` command."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from hf_ext.commands.help_texts import check_required, kept
from hf_ext.hub_cards.methods import METHODS, Kind


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
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__  # other libraries' have many lines
        print(f"hf-ext: error: {message}\n(--debug shows where)", file=sys.stderr)
        return 2
    return 0


def _dispatch(argv: list[str]) -> None:
    parser, train = _parsers()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "train":
        if arguments.method is None:
            train.print_help()
            return
        if rest in (["--help"], ["-h"]) and (text := kept(arguments.method)):
            print(text, end="")
            raise SystemExit(0)
        check_required(arguments.method, rest)
        _commands_of(arguments.method).train(rest)
        return
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "demo":
        out = arguments.out or f"hf_ext_demo_{arguments.method}"
        steps = {} if arguments.steps is None else {"steps": arguments.steps}
        _commands_of(arguments.method).demo(out, seeds=arguments.seeds, **steps)
        return
    # both need torch, which takes its time
    importlib.import_module(f"hf_ext.commands.{arguments.command}").run(arguments)


def _commands_of(method: str) -> ModuleType:
    module = METHODS[method].module("commands")
    assert module is not None  # argparse lets no other method pass
    return importlib.import_module(module)


def _methods_with(kind: Kind) -> list[str]:
    return [name for name, method in METHODS.items() if method.module(kind)]


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    from hf_ext import __version__

    trained = _methods_with("commands")
    parser = argparse.ArgumentParser(
        prog="hf-ext",
        description="Research methods as everyday tools for users of transformers, peft and accelerate.",
        epilog=f"methods: {', '.join(METHODS)}",
    )
    parser.add_argument("--version", action="version", version=f"hf-ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="train a method on embedded data, next to its baselines (minutes, nothing is downloaded)",
        description="Train a method on embedded data, next to its baselines; leaves a folder ready for the Hub.",
    )
    demo.add_argument("method", nargs="?", default="mola", choices=trained, help="default: mola")
    demo.add_argument("--out", help="folder for the result; default: ./hf_ext_demo_METHOD")
    demo.add_argument("--seeds", type=int, default=3, help="runs of every system; default: 3")
    demo.add_argument("--steps", type=int, help="training steps of every run; default: 250, in a federation 200")

    train = commands.add_parser(
        "train",
        help="train a method on your model and data",
        description="Train a method on your model and data. `hf-ext train METHOD --help` lists a method's options.",
        add_help=False,
    )
    train.add_argument("method", nargs="?", choices=trained, help="the method to train with")

    evidence = argparse.ArgumentParser(add_help=False)
    evidence.add_argument("methods", nargs="*", metavar="METHOD", help="whose; see below")
    evidence.add_argument("--all", action="store_true", help="of all methods")
    evidence.add_argument("--quick", action="store_true", help="small and short, into OUT/quick: shows that all works")
    evidence.add_argument("--out", default="hf_ext_results", help="folder for results; default: ./hf_ext_results")
    evidence.add_argument("--readme", help="markdown file whose blocks of results are written anew")

    reproduce = commands.add_parser(
        "reproduce",
        parents=[evidence, common],
        help="run a method's study: the method against its baselines, over seeds, with intervals",
        description="Run the studies of methods. Finished runs are saved: the same command goes on where it stopped.",
        epilog="methods: " + ", ".join(_methods_with("studies")),
    )
    reproduce.add_argument("--seeds", type=int, help="reported repetitions; default: the study's own number")
    reproduce.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=PATH_OR_HUB_ID",
        help="data for a data set of the study; may be given several times",
    )
    reproduce.add_argument("--study", action="append", default=[], metavar="NAME", help="only this one of the studies")
    reproduce.add_argument("--jobs", type=int, help="processes at a time, of one thread each; default: one per core")

    bench = commands.add_parser(
        "bench",
        parents=[evidence, common],
        help="time a method next to its peers, in turns, against the aims it has",
        description="Time methods next to their peers, in turns, with peak memory and operation counts.",
        epilog="methods: " + ", ".join(_methods_with("benchmarks")),
    )
    bench.add_argument("--rounds", type=int, default=15, help="counted steps of every contender; default: 15")
    bench.add_argument("--device", help="cpu or cuda; default: the CPU and, if there is one, the GPU")
    return parser, train


if __name__ == "__main__":
    sys.exit(main())

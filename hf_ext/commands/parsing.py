"""Dataclasses from the command line and YAML; the command line wins."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from hf_ext.commands.config_file import nearest, read_config


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults to help texts, but for None and "": what holds then, the text itself says."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_flag = action.nargs == 0
        return action.help if is_flag or action.default in (None, "") else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    def __init__(self, types: Sequence[type], **options: Any) -> None:
        kinds: Any = list(types)  # the parent's annotation does not admit dataclasses
        super().__init__(kinds, add_help=False, allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # argparse would print the usage of all of TrainingArguments first


def fields_for_cli(source: type, types: Mapping[str, Any]) -> type:
    """A dataclass of some of `source`'s fields: their defaults and help, but types that a command line can read."""
    by_name = {field.name: field for field in dataclasses.fields(source)}
    fields = []
    for name, kind in types.items():
        original = by_name[name]
        fields.append((name, kind, dataclasses.field(default=original.default, metadata=dict(original.metadata))))
    return dataclasses.make_dataclass(f"{source.__name__}Arguments", fields)


def parse(
    types: Sequence[type],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Any, ...]:
    """Parse `argv` (and the YAML file of `--config`) into one instance of every dataclass.

    Args:
        types: the dataclasses.
        argv: words of the command line.
        prog, description: for `--help`.
        defaults: of options, in place of the dataclasses' own.

    Raises:
        ValueError: an unknown option or key, or a value of the wrong type; it names them.
        SystemExit: after `--help` (the dataclasses without TrainingArguments' many options) or `--help-all`.
    """
    common = _Parser(())
    _add_common_options(common)
    options, rest = common.parse_known_args(list(argv))
    if options.help or options.help_all:
        _print_help(types, prog, description, defaults, everything=options.help_all)
        raise SystemExit(0)
    parser = _Parser(types)
    parser.set_defaults(**defaults)
    if options.config is not None:
        parser.set_defaults(**read_config(options.config, _annotations(types)))
    names = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
    for word in rest:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name not in names:
            raise ValueError(f"{word}: unknown option{nearest(name, names)}")
    try:
        return parser.parse_args_into_dataclasses(args=rest)
    except json.JSONDecodeError as error:  # of options that are mappings
        raise ValueError(f"options: found {error.doc[:100]!r} ({error}), allowed is JSON") from error
    except (AttributeError, KeyError, TypeError) as error:  # of TrainingArguments, which takes much on trust
        raise ValueError(f"options: found values that do not work ({type(error).__name__}: {error})") from error


def _annotations(types: Sequence[Any]) -> dict[str, Any]:
    """The types of all options, by name."""
    annotations: dict[str, Any] = {}
    for kind in types:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            choices: Any = field.metadata.get("choices")
            annotations[field.name] = Literal[tuple(choices)] if choices else hints[field.name]
    return annotations


def _add_common_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a file, with the names above")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("--help-all", action="store_true", help="show the options of TrainingArguments too")


def _print_help(
    types: Sequence[type], prog: str, description: str, defaults: Mapping[str, Any], *, everything: bool
) -> None:
    shown = [kind if everything else _without_training_arguments(kind) for kind in types]
    epilog = None
    if not everything:
        epilog = (
            "All of transformers' TrainingArguments are options too, such as --output_dir, --num_train_epochs, "
            "--learning_rate, --per_device_train_batch_size, --eval_strategy, --push_to_hub; --help-all lists them."
        )
        epilog += "".join(f" By default --{name} is {value} here." for name, value in defaults.items())
    parser = _Parser(shown, prog=prog, description=description, epilog=epilog, conflict_handler="resolve")
    _add_common_options(parser.add_argument_group("of every method"))  # its --debug wins over TrainingArguments'
    parser.set_defaults(**{name: value for name, value in defaults.items() if everything})
    parser.print_help()


def _without_training_arguments(kind: type) -> type:
    """The dataclass with only those fields that are not TrainingArguments'."""
    if not issubclass(kind, TrainingArguments):
        return kind
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    types = {field.name: field.type for field in dataclasses.fields(kind) if field.name not in theirs}
    return fields_for_cli(kind, types)

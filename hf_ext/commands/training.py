"""What all of `hf-ext train METHOD` share: a Trainer from the command line, and what is done with it."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import Trainer, TrainingArguments, enable_full_determinism, set_seed

from hf_ext._arguments import Count, check_value
from hf_ext.commands.loading import DataArguments, Loaded, ModelArguments, load_model_and_data
from hf_ext.commands.lora import LoraArguments
from hf_ext.commands.parsing import parse

_OF_TIME = re.compile(r"(_runtime|_per_second|preparation_time|^epoch)$")
#: what the HTTP client under huggingface_hub raises, whichever of its libraries that is
_HTTPError: Any = HfHubHTTPError.__bases__[0]


def train_method(
    method: str,
    trainer_class: type[Trainer],
    config_class: type[TrainingArguments],
    argv: Sequence[str],
    *,
    description: str,
    model: type[ModelArguments] = ModelArguments,
    rows: type[DataArguments] = DataArguments,
    adapter: type = LoraArguments,
    check: Callable[[Any], None] | None = None,
    evaluated: Callable[[Any], Mapping[str, Any]] | None = None,
    saved: Callable[[Any], None] | None = None,
    look: Callable[[Any, Any, Any], None] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Train (or resume), evaluate, and leave a folder with a card that is ready for the Hub, or send it there.

    Args:
        method: as in `hf-ext train METHOD`.
        trainer_class, config_class: of the method.
        argv: options of `model`, `rows`, `adapter` and `config_class`.
        description: for `--help`.
        model: options that say which model, with a `load(names)` of their own where it is not an Auto class's.
        rows: options that say which data.
        adapter: a dataclass of options with `adapted(model)`, which gives what is trained.
        check: called with the config before anything is loaded; raises ValueError.
        evaluated: data sets to evaluate on besides, by name; called with the trainer.
        saved: called with the trainer once the model is saved, and before it is pushed.
        look: called with the options of the adapter, the training data and the config before anything is trained.
        defaults: of options, in place of their own.
    """
    types = (model, rows, adapter, config_class)
    chosen, data, options, args = parse(
        types, argv, prog=f"hf-ext train {method}", description=description, defaults=defaults or {}
    )
    check_counts(args)
    if check is not None:
        check(args)
    loaded = seeded(args, chosen, data)
    if look is not None:
        look(options, loaded.data["train"], args)
    trainer = new_trainer(trainer_class, options.adapted(loaded.model), args, loaded)
    trainer.train(resume_from_checkpoint=resumed_from(args))
    leave(trainer, data.dataset, evaluated=evaluated, saved=saved)


def check_counts(args: TrainingArguments) -> None:
    """Refuse those of TrainingArguments' counts that nobody else looks at."""
    check_value("gradient_accumulation_steps", args.gradient_accumulation_steps, Count)


def seeded(args: TrainingArguments, chosen: ModelArguments, data: DataArguments) -> Loaded:
    """Model and data. Seeds are set here already, as Trainer does it later: heads and adapters start at random."""
    seed_all(args)
    return load_model_and_data(chosen, data, seed=args.seed)


def seed_all(args: TrainingArguments) -> None:
    """Set seeds as Trainer does when it is made."""
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)


def options_of(kind: type[TrainingArguments], args: TrainingArguments) -> dict[str, Any]:
    """What to make arguments of a class from, with the values of others that have the same fields."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(kind) if field.init}


def new_trainer(
    trainer_class: type[Trainer], network: nn.Module, args: TrainingArguments, loaded: Loaded, **rows: Any
) -> Any:
    """A Trainer of what has been loaded; `rows` are other data sets than those."""
    args.remove_unused_columns = args.remove_unused_columns and not loaded.keeps_columns
    own = {"train_dataset": loaded.data["train"], "eval_dataset": loaded.data.get("eval")}
    with _reaching_the_hub(args):
        trainer: Any = trainer_class(
            model=network,
            args=args,
            data_collator=loaded.collator,
            processing_class=loaded.processor,
            compute_metrics=loaded.metrics,
            **own | rows,
        )
    trainer.data_remark = loaded.remark
    return trainer


def resumed_from(args: TrainingArguments) -> str | bool | None:
    """What `--resume_from_checkpoint` says: a folder, or whether to."""
    said = args.resume_from_checkpoint
    return str(said).lower() == "true" if str(said).lower() in ("true", "false") else said


def leave(
    trainer: Any,
    dataset: str,
    *,
    evaluated: Callable[[Any], Mapping[str, Any]] | None = None,
    saved: Callable[[Any], None] | None = None,
    told: Callable[[Mapping[str, Mapping[str, float]]], str] | None = None,
) -> None:
    """Evaluate what has been trained, and leave its folder, or send it to the Hub; see `train_method`.

    `told`, called with the metrics of every data set, says in words what came out, in place of a line for each.
    """
    args = trainer.args
    metrics = {} if trainer.eval_dataset is None else {"eval": trainer.evaluate()}
    for name, rows in (evaluated(trainer) if evaluated is not None else {}).items():
        metrics[name] = trainer.evaluate(rows, metric_key_prefix=f"eval_{name}")
    for name, values in metrics.items():
        trainer.save_metrics(name, values)
    trainer.save_model()
    if saved is not None:
        saved(trainer)
    trainer.create_model_card(dataset=dataset)
    if args.push_to_hub:
        trainer.push_to_hub(dataset=dataset)
    if trainer.is_world_process_zero():
        print(summary(metrics, args.output_dir, trainer.data_remark) if told is None else told(metrics))
    trainer.accelerator.end_training()  # a process group that is left to the interpreter's end may abort there


def summary(metrics: Mapping[str, Mapping[str, float]], folder: str, remark: str) -> str:
    """What came out and where it lies, to be read: metrics, without those of time."""
    lines = [remark] if remark else []
    for values in metrics.values():
        shown = {name: value for name, value in values.items() if not _OF_TIME.search(name)}
        lines += [f"{name}: {value:.4g}" for name, value in shown.items() if isinstance(value, int | float)]
    return "\n".join([*lines, result_line(folder)])


def result_line(folder: str) -> str:
    """Where the result lies."""
    return f"result: {Path(folder).resolve()} (README.md is its model card)"


@contextmanager
def _reaching_the_hub(args: TrainingArguments) -> Iterator[None]:
    """A Trainer that is to push makes its repository first."""
    try:
        yield
    except (_HTTPError, ConnectionError) as error:
        if not args.push_to_hub:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"push_to_hub: found no way to reach the Hub ({reason}), allowed is training without it; push the folder "
            "later"
        ) from error

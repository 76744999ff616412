"""What all of `hf-ext train METHOD` share: a Trainer from the command line, and what is done with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import Trainer, TrainingArguments, enable_full_determinism, set_seed

from hf_ext.commands.loading import DataArguments, ModelArguments, accuracy, load_model_and_data
from hf_ext.commands.lora import LoraArguments
from hf_ext.commands.parsing import parse

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
    """
    types = (model, rows, adapter, config_class)
    chosen, data, options, args = parse(types, argv, prog=f"hf-ext train {method}", description=description)
    if check is not None:
        check(args)
    # here already, as Trainer does it later: heads and adapters start with random weights
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    loaded = load_model_and_data(chosen, data)
    network: nn.Module = options.adapted(loaded.model)
    args.remove_unused_columns = args.remove_unused_columns and not loaded.keeps_columns
    with _reaching_the_hub(args):
        trainer: Any = trainer_class(
            model=network,
            args=args,
            data_collator=loaded.collator,
            train_dataset=loaded.data["train"],
            eval_dataset=loaded.data["eval"],
            processing_class=loaded.processor,
            compute_metrics=accuracy,
        )
    resume: str | bool | None = args.resume_from_checkpoint
    if str(resume).lower() in ("true", "false"):
        resume = str(resume).lower() == "true"
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_metrics("eval", trainer.evaluate())
    for name, rows in (evaluated(trainer) if evaluated is not None else {}).items():
        trainer.save_metrics(name, trainer.evaluate(rows, metric_key_prefix=f"eval_{name}"))
    trainer.save_model()
    if saved is not None:
        saved(trainer)
    trainer.create_model_card(dataset=data.dataset)
    if args.push_to_hub:
        trainer.push_to_hub(dataset=data.dataset)
    trainer.accelerator.end_training()  # a process group that is left to the interpreter's end may abort there


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

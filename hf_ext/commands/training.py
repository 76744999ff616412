"""What `hf-ext train METHOD` does once there is a trainer."""

from collections.abc import Mapping
from typing import Any


def train_and_save(trainer: Any, dataset: str, further: Mapping[str, Any] | None = None) -> None:
    """Train (or resume), evaluate, and leave a folder with a card that is ready for the Hub, or send it there.

    `further` are data sets to evaluate on besides, by name.
    """
    args = trainer.args
    resume: str | bool | None = args.resume_from_checkpoint
    if str(resume).lower() in ("true", "false"):
        resume = str(resume).lower() == "true"
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_metrics("eval", trainer.evaluate())
    for name, rows in (further or {}).items():
        trainer.save_metrics(name, trainer.evaluate(rows, metric_key_prefix=f"eval_{name}"))
    trainer.save_model()
    trainer.create_model_card(dataset=dataset)
    if args.push_to_hub:
        trainer.push_to_hub(dataset=dataset)

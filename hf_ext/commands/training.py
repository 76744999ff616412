"""What `hf-ext train METHOD` does once there is a trainer."""

from typing import Any


def train_and_save(trainer: Any, dataset: str) -> None:
    """Train (or resume), evaluate, and leave a folder with a card that is ready for the Hub, or send it there."""
    args = trainer.args
    resume: str | bool | None = args.resume_from_checkpoint
    if str(resume).lower() in ("true", "false"):
        resume = str(resume).lower() == "true"
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model()
    trainer.create_model_card(dataset=dataset)
    if args.push_to_hub:
        trainer.push_to_hub(dataset=dataset)

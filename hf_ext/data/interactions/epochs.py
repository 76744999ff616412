"""The number of the epoch, for data sets that draw anew in each."""

from typing import Any

from transformers import TrainerCallback


class SetEpoch(TrainerCallback):
    """Tells the training data the epoch before it begins: `Trainer(..., callbacks=[SetEpoch()])`.

    accelerate does so for one process that starts at the beginning; with several, or when training is resumed within
    an epoch, it tells the sampler in the data set's place.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        dataset: Any = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))

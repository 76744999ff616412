"""How well was forgotten: UA, RA, TA and MIA of the trained model, for the log and the card."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch.utils.data import Subset
from transformers import Trainer

from hf_ext.hub_cards import METHODS, Result
from hf_ext.metrics import unlearning_metrics
from hf_ext.trainers.losses import logits_of
from hf_ext.trainers.processes import model_of
from hf_ext.trainers.tarf.forget_rows import rows_outside
from hf_ext.trainers.tarf.identification import row_batches
from hf_ext.trainers.tarf.paired import ROW
from hf_ext.trainers.tarf.retention import evenly_spread

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

#: rows of a part that are looked at, at most, evenly spread
_MOST = 2000
_SHOWN = ("UA", "RA", "TA", "MIA")
#: what the numbers on the card mean
_MEANING = (
    "In percent, of {forget} rows to forget, {retain} remaining rows and {test} evaluation rows{outside}. "
    "UA: accuracy on the rows to forget, the lower the more is forgotten; RA: on the remaining rows; "
    "TA: on the evaluation rows; MIA: share of the rows to forget that an attack by confidence takes for never "
    "trained on. What these should be, a model shows that was trained anew without the rows to forget; none was "
    "compared with."
)


class UnlearningScoresMixin(_Base):
    """Measures, after training, what was forgotten and what was not; for a Trainer with a `forget_dataset`.

    With an evaluation set, and a class for every row. Rows of it that `tarf_forget_column` says are of what is to be
    forgotten do not count, and neither do remaining rows that were left out.
    """

    args: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: of `unlearning_metrics`, by the last training
        self.unlearned: dict[str, float] = {}
        self._unlearned_on: dict[str, Any] = {}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; then measure."""
        output = super().train(*args, **kwargs)
        self.unlearned, self._unlearned_on = _scores(self)
        self.log_measured(output, {f"unlearning_{name}": value for name, value in self.unlearned.items()})
        return output

    def log_measured(self, output: Any, measured: dict[str, float]) -> None:
        """Log what was measured after training, and add it to what `train` returns: a user's may return nothing."""
        if not measured:
            return
        if output is not None:
            output.metrics.update(measured)
        self.log(measured)

    def card_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = super().card_facts()  # type: ignore[misc]  # of CardMixin
        if not self.unlearned or "results" not in facts:
            return facts
        title = METHODS["tarf"].title
        rows = [Result(title, name, self.unlearned[name], is_method=True) for name in _SHOWN]
        facts["results"] = [*facts["results"], *rows]
        return {"dataset_description": _MEANING.format(**self._unlearned_on), **facts}


def _scores(trainer: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """UA, RA, TA, MIA, and of how many rows; nothing where a part is missing or rows have no class."""
    test, column = trainer.eval_dataset, trainer.args.tarf_forget_column
    kept = trainer.identification.retained
    data = {"forget": trainer.forget_dataset, "retain": trainer._looked_at, "test": test}
    if not all(hasattr(rows, "__len__") and hasattr(rows, "__getitem__") for rows in data.values()):
        return {}, {}
    if isinstance(test, dict):  # several sets, each with a meaning of its own
        return {}, {}
    outside = rows_outside(test, column, trainer.args.tarf_forget_value) if column is not None else None
    rows = {
        "forget": np.arange(len(data["forget"])),
        "retain": np.arange(len(data["retain"])) if kept is None else np.flatnonzero(np.asarray(kept.cpu())),
        "test": np.arange(len(test)) if outside is None else outside,
    }
    parts: list[str] = []
    logits: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    for name, places in rows.items():
        looked_at = places[evenly_spread(len(places), _MOST)].tolist()
        predicted = _predicted(trainer, data[name], looked_at) if looked_at else None
        if predicted is None:
            return {}, {}
        logits.append(predicted[0])
        labels.append(predicted[1])
        parts += [name] * len(predicted[1])
    about: dict[str, Any] = {name: parts.count(name) for name in rows}
    about["outside"] = "" if outside is None else f" whose {column} is none that is to be forgotten"
    return unlearning_metrics(np.concatenate(logits), np.concatenate(labels), parts), about


def _predicted(trainer: Any, data: Any, rows: list[int]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Logits `[N, C]` and labels `[N]` of these rows, the same in all processes; None if they have no class each."""
    model, found = model_of(trainer), []
    for is_new, inputs in row_batches(trainer, Subset(data, rows)):
        labels = inputs.get("labels")
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits = logits_of(model(**inputs), with_loss=labels is not None)
        if is_new:
            places = trainer.batch_columns[ROW].cpu()
            found.append([places, logits.float().cpu(), None if labels is None else labels.cpu()])
    if trainer.accelerator.num_processes > 1:
        found = gather_object(found)
    if any(labels is None or labels.ndim != 1 or labels.is_floating_point() for _, _, labels in found):
        return None
    order = torch.cat([places for places, _, _ in found]).argsort()
    logits, classes = (torch.cat([part[place] for part in found])[order] for place in (1, 2))
    if logits.ndim != 2 or not logits.isfinite().all() or not 0 <= classes.min() <= classes.max() < logits.shape[1]:
        return None
    return logits.numpy(), classes.numpy()

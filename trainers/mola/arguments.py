"""Arguments of training a MoLA adapter; the adapter's own are in `MoLAConfig`."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class MoLAArguments:
    """Arguments of `MoLAMixin`, to be mixed with any TrainingArguments. The adapter's own are in `MoLAConfig`.

    Args:
        mola_task_column: data set column of integer task ids, in `[0, number of tasks)`.
        mola_task_reduction: `"sample"`, the plain mean over samples; `"sum"`, the sum of the tasks' means (each over
            the whole batch of an update, all processes and micro-batches), so that small tasks weigh as much.
    """

    mola_task_column: str = field(default="task_ids", metadata={"help": "Data set column of integer task ids."})
    mola_task_reduction: Literal["sample", "sum"] = field(
        default="sample", metadata={"help": "'sample': mean over samples; 'sum': sum of the tasks' means."}
    )

    def __post_init__(self) -> None:
        if self.mola_task_reduction not in ("sample", "sum"):
            raise ValueError(
                f"mola_task_reduction: found {self.mola_task_reduction!r}, allowed are 'sample' and 'sum'"
            )
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()

"""Arguments of training a MoLA adapter; the adapter's own are in `MoLAConfig`."""

from dataclasses import dataclass
from typing import Literal

from hf_ext.trainers.arguments import MethodArguments, option


@dataclass
class MoLAArguments(MethodArguments):
    """Arguments of `MoLAMixin`, to be mixed with any TrainingArguments."""

    mola_task_column: str = option(
        "task_ids", "Data set column of the tasks: integers from 0 to their number less one, or names."
    )
    mola_task_reduction: Literal["sample", "sum"] = option(
        "sample",
        "How the losses of several tasks make one: 'sample', the mean over samples; 'sum', the sum of the tasks' "
        "means (each over the whole batch of an update), so that small tasks count as much as large ones.",
    )

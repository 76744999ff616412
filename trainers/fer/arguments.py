"""Arguments of FER: the weights of its losses, where they differ from the model's."""

from dataclasses import dataclass
from typing import Literal

from hf_ext._arguments import NonNegative
from hf_ext.trainers.arguments import MethodArguments, option


@dataclass
class FERArguments(MethodArguments):
    """Arguments of `FERMixin`, to be mixed with any TrainingArguments. None: as the model's configuration says."""

    fer_contrast_pairs: Literal["all", "paired"] | None = option(
        None,
        "What the contrast pulls a face to: 'all', the texts of all faces; 'paired', its own text. By default as the "
        "model's configuration says ('all' in a new one).",
    )
    fer_lambda_s: NonNegative | None = option(
        None, "Weight of the matching loss, the cross-entropy; by default the model's (1 in a new one)."
    )
    fer_lambda_t: NonNegative | None = option(
        None, "Weight of the transformation loss; by default the model's (1 in a new one)."
    )
    fer_lambda_c: NonNegative | None = option(None, "Weight of the contrast; by default the model's (1 in a new one).")

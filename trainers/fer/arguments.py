"""Arguments of FER: the weights of its losses, where they differ from the model's."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class FERArguments:
    """Arguments of `FERMixin`, to be mixed with any TrainingArguments. None: as the model's configuration says.

    Args:
        fer_contrast_pairs: `"all"`, every face to the texts of all, or `"paired"`, each to its own.
        fer_lambda_s, fer_lambda_t, fer_lambda_c: weights of matching, transformation and contrast.
    """

    fer_contrast_pairs: Literal["all", "paired"] | None = field(
        default=None, metadata={"help": "all or paired; by default the model's."}
    )
    fer_lambda_s: float | None = field(default=None, metadata={"help": "Weight of matching; the model's."})
    fer_lambda_t: float | None = field(default=None, metadata={"help": "Weight of the transformation; the model's."})
    fer_lambda_c: float | None = field(default=None, metadata={"help": "Weight of the contrast; the model's."})

    def __post_init__(self) -> None:
        if self.fer_contrast_pairs not in (None, "all", "paired"):
            raise ValueError(
                f"fer_contrast_pairs: found {self.fer_contrast_pairs!r}, allowed are None, 'all', 'paired'"
            )
        for name in ("fer_lambda_s", "fer_lambda_t", "fer_lambda_c"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: found {value!r}, allowed are None and numbers >= 0")
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()

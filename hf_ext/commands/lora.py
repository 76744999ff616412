"""A LoRA in place of all weights, for training from the command line."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from peft import LoraConfig, get_peft_model
from torch import nn

from hf_ext._arguments import Bounds
from hf_ext._models import with_new_modules
from hf_ext.trainers.arguments import MethodArguments, option


@dataclass
class LoraArguments(MethodArguments):
    """Whether all weights are trained, or a LoRA.

    Raises:
        ValueError: a negative rank, a lora_alpha that is not positive, options of a LoRA without a rank.
    """

    lora_r: Annotated[int, Bounds(at_least=0)] = option(
        0, "Rank of a LoRA to train in place of all weights; 0: no LoRA."
    )
    lora_alpha: Annotated[int, Bounds(above=0)] | None = option(
        None, "The LoRA's update is scaled by lora_alpha / lora_r; by default 2 lora_r."
    )
    lora_target_modules: list[str] | None = option(
        None, "Layers that the LoRA is added to; by default all linear ones but the classifier."
    )
    lora_modules_to_save: list[str] | None = option(
        None,
        "Layers trained in full in addition to the LoRA, or 'none'; by default the classifier. New ones always are.",
    )

    def check_options(self) -> None:
        super().check_options()
        if self.lora_r == 0:
            for name in ("lora_alpha", "lora_target_modules", "lora_modules_to_save"):
                if getattr(self, name):
                    raise ValueError(f"lora_r: found 0 with {name}, allowed is a rank >= 1")

    def adapted(self, model: nn.Module) -> nn.Module:
        """The model, or the model with a LoRA."""
        if self.lora_r == 0:
            return model
        heads = [name for name in ("classifier", "score") if hasattr(model, name)]
        named = heads if self.lora_modules_to_save is None else self.lora_modules_to_save
        config = LoraConfig(
            r=self.lora_r,
            lora_alpha=2 * self.lora_r if self.lora_alpha is None else self.lora_alpha,
            target_modules=self.lora_target_modules or "all-linear",
            exclude_modules=None if self.lora_target_modules or not heads else rf"(.*\.)?({'|'.join(heads)})(\..*)?",
            # nobody could make a new head again
            modules_to_save=with_new_modules(model, [] if named == ["none"] else named),
        )
        return get_peft_model(model, config)


class PartLora(LoraArguments):
    """A LoRA on a part of a saved model that is composed of others.

    Not on a new one: an adapter's folder would lack that model's other weights.
    """

    what: ClassVar[str]  # in errors

    def adapted(self, model: nn.Module) -> nn.Module:
        """The model, or a saved model with a LoRA.

        Raises:
            ValueError: a LoRA on a new model.
        """
        if self.lora_r > 0:
            if not getattr(model, "name_or_path", ""):
                raise ValueError(
                    f"lora_r: found {self.lora_r} with a new {self.what}, whose other weights nobody could load, "
                    f"allowed is 0, or a saved {self.what} (model_name_or_path)"
                )
            targets, saved = self.defaults(model)
            self.lora_target_modules = self.lora_target_modules or targets
            self.lora_modules_to_save = self.lora_modules_to_save or saved
        return super().adapted(model)

    def defaults(self, model: Any) -> tuple[list[str], list[str]]:
        """Names of the layers that the LoRA is added to, and of those that are trained in full."""
        raise NotImplementedError

"""Configuration of RD models."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from .portable import Number, as_config, as_number

_CHOICES = {"phi_kind": ("mlp", "conv"), "teacher_inputs": ("same", "pixel_values", "features")}
_COUNT: dict[str, Any] = {"at_least": 1, "integer": True}
_POSITIVE: dict[str, Any] = {"above": 0}
_NON_NEGATIVE: dict[str, Any] = {"at_least": 0}
_ANY: dict[str, Any] = {}
#: bounds of numbers, and of every number in a list, as `as_number` takes them
_NUMBERS = {
    **{"teacher_width": _COUNT, "phi_width": _COUNT, "teacher_size": _COUNT},
    **{"teacher_mean": _ANY, "teacher_std": _POSITIVE, "pixel_mean": _ANY, "pixel_std": _POSITIVE},
    **{"alpha": _NON_NEGATIVE, "gamma": _NON_NEGATIVE, "beta": _NON_NEGATIVE, "temperature": _POSITIVE},
}
_LABELS = ("id2label", "label2id", "problem_type")


@strict
class RDConfig(PreTrainedConfig):
    r"""Configuration of `RDModel` and `RDForImageClassification`: a student, its teacher and the module between them.

    The labels of this configuration and of `student_config` are the same: setting either sets both.

    Args:
        student_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of an image classifier of any `model_type`; by default that of a ResNet.
        student_classifier (`str`, *optional*):
            Name of the student's last linear layer, the shared classifier; by default the only one that fits.
        teacher_width (`int`, *optional*, defaults to 768):
            Width of the teacher's features, or channels of its feature maps.
        teacher_name (`str`, *optional*):
            Hub id or folder of the teacher, for `attach_teacher()` and for readers.
        teacher_revision (`str`, *optional*):
            Revision of that repository.
        teacher_kind (`str`, *optional*):
            Kind of the teacher: `"transformers"`, `"timm"`, `"module"` or `"callable"`.
        teacher_inputs (`str`, *optional*, defaults to `"same"`):
            What the teacher sees: the student's pixel values (`"same"`), converted as the next arguments say; the
            batch's `teacher_pixel_values` (`"pixel_values"`); nothing, since the batch has `teacher_features`
            (`"features"`).
        teacher_size (`list[int]`, *optional*):
            Height and width to which the pixel values are resized for the teacher; as they are by default.
        teacher_mean (`list[float]`, *optional*):
            Mean by channel that the teacher expects its inputs to be normalised with; as they are by default.
        teacher_std (`list[float]`, *optional*):
            Standard deviation by channel, likewise.
        pixel_mean (`list[float]`, *optional*):
            Mean by channel that the student's pixel values are normalised with; 0 by default.
        pixel_std (`list[float]`, *optional*):
            Standard deviation by channel, likewise; 1 by default.
        phi_kind (`str`, *optional*, defaults to `"mlp"`):
            The module that reprograms the teacher's features: two linear layers for vectors (`"mlp"`), or three
            convolutions and a mean over places for feature maps (`"conv"`).
        phi_width (`int`, *optional*):
            Hidden width of that module; by default twice the width of the student's features.
        alpha (`float`, *optional*, defaults to 1):
            Coefficient of the cross-entropy of the reprogrammed features.
        gamma (`float`, *optional*, defaults to 1):
            Coefficient of the alignment (CKA) of student and reprogrammed features.
        beta (`float`, *optional*, defaults to 0):
            Coefficient of the Kullback-Leibler divergence between the two predictions.
        temperature (`float`, *optional*, defaults to 4):
            Temperature of that divergence.
        detach_reprogrammed (`bool`, *optional*, defaults to `False`):
            Whether the alignment's gradient reaches the student only.
        debiased (`bool`, *optional*, defaults to `False`):
            Whether the alignment uses the debiased CKA.

    Raises:
        ValueError: a value that is not allowed.
    """

    model_type = "rd"
    sub_configs_defaults = {"student_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    student_config: dict | PreTrainedConfig | None = None
    student_classifier: str | None = None
    teacher_width: Number = 768
    teacher_name: str | None = None
    teacher_revision: str | None = None
    teacher_kind: str | None = None
    teacher_inputs: str = "same"
    teacher_size: list[Number] | tuple[Number, ...] | None = None
    teacher_mean: list[Number] | tuple[Number, ...] | None = None
    teacher_std: list[Number] | tuple[Number, ...] | None = None
    pixel_mean: list[Number] | tuple[Number, ...] | None = None
    pixel_std: list[Number] | tuple[Number, ...] | None = None
    phi_kind: str = "mlp"
    phi_width: Number | None = None
    alpha: Number = 1.0
    gamma: Number = 1.0
    beta: Number = 0.0
    temperature: Number = 4.0
    detach_reprogrammed: bool = False
    debiased: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self._check()
        if self.student_config is not None:
            self.student_config = as_config(self.student_config, "student_config")
        spec = self.sub_configs_defaults["student_config"]
        student, kwargs = spec.create_subconfig("student_config", self.student_config, **kwargs)
        self.student_config = student
        if self.id2label is None and kwargs.get("num_labels") is None:
            for name in _LABELS:
                setattr(self, name, getattr(student, name))
        # of a student given as a configuration: the parent class would set this configuration's there
        kwargs.setdefault("attn_implementation", student._attn_implementation)
        super().__post_init__(**kwargs)
        for name in _LABELS:
            setattr(self, name, getattr(self, name))

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(allowed)}")
        for name, bounds in _NUMBERS.items():
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, [as_number(one, name, **bounds) for one in value])
            elif value is not None:
                setattr(self, name, as_number(value, name, **bounds))
        if self.teacher_size is not None and len(self.teacher_size) != 2:
            raise ValueError(f"teacher_size: found {self.teacher_size!r}, allowed are a height and a width")
        for prefix in ("teacher", "pixel"):
            mean, std = (getattr(self, f"{prefix}_{name}") for name in ("mean", "std"))
            if (mean is None) != (std is None) or (mean is not None and len(mean) != len(std)):
                raise ValueError(
                    f"{prefix}_std: found {std!r} with {prefix}_mean={mean!r}, allowed are as many values"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _LABELS and isinstance(student := self.__dict__.get("student_config"), PreTrainedConfig):
            setattr(student, name, value)
            for written in ("label_names", "num_classes"):  # TimmWrapperConfig would save those that it was read with
                vars(student).pop(written, None)


__all__ = ["RDConfig"]

"""RD: a student that learns together with reprogrammed features of a frozen teacher.

Zhou et al., "Reprogramming Distillation for Medical Foundation Models", MICCAI 2024, https://arxiv.org/abs/2407.06504.
"""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput

from .configuration_rd import RDConfig
from .phi_rd import as_phi_takes_it, make_phi
from .portable import carrying_code, check_labels
from .portable_loading import LoadedWhole
from .student_rd import find_classifier, run_student, save_student
from .teacher_rd import RDTeacher, Teacher, pixel_settings, teacher_view

if TYPE_CHECKING:
    from typing import Self

rd_losses_of_logits: Any
try:  # the files of this folder also travel alone, without the package
    from hf_ext.functional import rd_losses_of_logits
except ImportError:
    rd_losses_of_logits = None


@dataclass
class RDModelOutput(ModelOutput):
    """Output of `RDModel`.

    Args:
        pooler_output: the student's features, `[B, D]`.
        reprogrammed: the teacher's features mapped by phi to the student's width, `[B, D]`; None without a teacher.
        teacher_features: the teacher's features, in the shape that phi takes; None without a teacher.
    """

    pooler_output: Tensor | None = None
    reprogrammed: Tensor | None = None
    teacher_features: Tensor | None = None


@dataclass
class RDImageClassifierOutput(ImageClassifierOutput):
    """Output of `RDForImageClassification`; all but loss and logits only with `output_details=True`.

    Args:
        loss: scalar.
        logits: the student's, `[B, C]`.
        student_features: `[B, D]`.
        reprogrammed, teacher_features: as in `RDModelOutput`.
        reprogrammed_logits: the shared classifier's, for the reprogrammed features, `[B, C]`; None without a teacher.
        losses: terms of the loss, by name (see `hf_ext.functional.rd_losses`); None without labels or a teacher.
    """

    student_features: Tensor | None = None
    reprogrammed: Tensor | None = None
    teacher_features: Tensor | None = None
    reprogrammed_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class RDPreTrainedModel(LoadedWhole):
    """A student, the module phi, and a reference to a teacher, whose parameters are not the model's."""

    config: RDConfig
    config_class = RDConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is a mean over the micro-batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RDConfig, student: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if student is None:
            student = AutoModelForImageClassification.from_config(config.student_config)
        else:
            module: Any
            for module in student.modules():  # post_init must not initialise its loaded parameters again
                module._is_hf_initialized = True
        self.student: PreTrainedModel = student
        config.student_config = student.config
        config.student_classifier = find_classifier(student, config.student_classifier)
        self.phi = make_phi(config, int(self.classifier.in_features))
        self.supports_gradient_checkpointing: bool = student.supports_gradient_checkpointing
        self._teacher: RDTeacher | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # phi's, as torch does (a standard deviation of 0.02 would be too small here); the student's class does its own
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        self.student._set_gradient_checkpointing(*args, **kwargs)

    def get_input_embeddings(self) -> Any:
        """None: pixels are embedded by the student, if at all. FSDP2 asks every model."""
        return None

    @property
    def classifier(self) -> Any:
        """The student's last linear layer, which the reprogrammed features share."""
        return self.student.get_submodule(str(self.config.student_classifier))

    # ---------------------------------------------------------------------------------------------- making
    @classmethod
    def from_student(
        cls,
        student: PreTrainedModel | str | os.PathLike[str],
        teacher: Teacher | str | os.PathLike[str] | None = None,
        *,
        teacher_width: int | None = None,
        image_processor: Any = None,
        teacher_processor: Any = None,
        student_options: dict[str, Any] | None = None,
        **config: Any,
    ) -> "Self":
        """An RD model around a student, whose parameters are not initialised again.

        Args:
            student: an image classifier of transformers, also one that wraps a timm model, with the target's
                labels; or a name or path for `AutoModelForImageClassification.from_pretrained`. It becomes a part of
                the model.
            teacher: see `attach_teacher`.
            teacher_width: width of the teacher's features, or channels of its feature maps; by default measured, if it
                gives vectors and is a model of transformers or timm.
            image_processor, teacher_processor: of student and teacher. Both given, the student's pixel values are
                converted for the teacher on the device.
            student_options: keywords for `from_pretrained`, such as `num_labels` and `ignore_mismatched_sizes`.
            config: further arguments of `RDConfig`.

        Raises:
            ValueError: a student without one linear classifier, or with another number of labels than asked for.
        """
        if isinstance(student, (str, os.PathLike)):
            student = AutoModelForImageClassification.from_pretrained(student, **(student_options or {}))
        elif student_options:
            raise ValueError("student_options: found some with a student that is loaded, allowed are none")
        if not isinstance(student, PreTrainedModel):
            raise ValueError(
                f"student: found {type(student).__name__}, allowed are an image classifier of transformers (of timm: "
                "TimmWrapperForImageClassification), a name or path"
            )
        labels = config.get(
            "num_labels", len(config["id2label"]) if "id2label" in config else student.config.num_labels
        )
        if labels != student.config.num_labels:
            raise ValueError(
                f"num_labels: found {labels}, allowed is that of the student, {student.config.num_labels}; give the "
                "student as many labels as the target has"
            )
        own = {f"pixel_{name}": value for name, value in pixel_settings(image_processor).items() if name != "size"}
        its = {f"teacher_{name}": value for name, value in pixel_settings(teacher_processor).items()}
        converted = own | its if image_processor is not None and teacher_processor is not None else {}
        attached = None if teacher is None else RDTeacher(teacher, config.get("teacher_revision"))
        if attached is not None:
            attached.name = attached.name or config.get("teacher_name")
        if teacher_width is None:
            if attached is None:
                raise ValueError("teacher_width: found none without a teacher, allowed is the width of its features")
            teacher_width = attached.width()
        settings = {"teacher_width": teacher_width, **converted, **config}
        model = cls(RDConfig(student_config=student.config, **settings), student)
        model.phi.to(student.dtype)
        if attached is not None:
            model._attach(attached)
        return model

    def attach_teacher(
        self, teacher: Teacher | str | os.PathLike[str] | None = None, revision: str | None = None
    ) -> "Self":
        """Give the model its teacher, needed for training alone and saved nowhere; again after every loading.

        Args:
            teacher: a transformers model (its `pooler_output`, without one its first token, or `last_hidden_state` for
                maps; of one of images and texts the image part), a timm model (its features, whatever head it has),
                another module or a function of pixel values that returns features; a name or path for `AutoModel`; by
                default what the configuration names. Modules are frozen.
            revision: of a repository.

        Returns:
            The model itself.

        Raises:
            ValueError: no teacher of these kinds.
        """
        if revision is None and teacher in (None, self.config.teacher_name):
            revision = self.config.teacher_revision
        teacher = self.config.teacher_name if teacher is None else teacher
        if teacher is None:
            raise ValueError("teacher: found none, here and as teacher_name of the configuration, allowed is one")
        self._attach(RDTeacher(teacher, revision))
        return self

    def _attach(self, teacher: RDTeacher) -> None:
        self._teacher, self.config.teacher_kind = teacher, teacher.kind
        self.config.teacher_name, self.config.teacher_revision = teacher.name, teacher.revision

    @property
    def teacher(self) -> Any:
        """What was attached, or None."""
        return None if self._teacher is None else self._teacher.call

    # ---------------------------------------------------------------------------------------------- computing
    def reads_teacher(self, teacher_features: Tensor | None = None) -> bool:
        """Whether there are features of the teacher for a batch, its own or those of the one attached."""
        return teacher_features is not None or (self._teacher is not None and self.config.teacher_inputs != "features")

    def get_teacher_features(
        self,
        pixel_values: Tensor,
        teacher_features: Tensor | None = None,
        teacher_pixel_values: Tensor | None = None,
    ) -> Tensor:
        """The teacher's features of a batch, in the shape that phi takes; computed unless the batch has them.

        Args:
            pixel_values: of the student, `[B, C, H, W]`.
            teacher_features: `[B, W]` or `[B, W, H', W']`.
            teacher_pixel_values: what the teacher sees, where `config.teacher_inputs` is "pixel_values".

        Raises:
            ValueError: nothing to take them from, or another shape.
        """
        inputs = self.config.teacher_inputs
        if teacher_features is None:
            if self._teacher is None or inputs == "features":
                found = "none attached" if self._teacher is None else f"{inputs!r} as teacher_inputs"
                raise ValueError(
                    f"teacher: found {found} and no teacher_features in the batch, allowed is either: "
                    "attach_teacher(...), or that column"
                )
            if (inputs == "pixel_values") != (teacher_pixel_values is not None):
                found = "no teacher_pixel_values" if teacher_pixel_values is None else "teacher_pixel_values"
                raise ValueError(
                    f"teacher_inputs: found {inputs!r} and {found} in the batch, allowed is 'pixel_values' with them "
                    "and 'same' without"
                )
            seen = teacher_view(pixel_values, self.config) if teacher_pixel_values is None else teacher_pixel_values
            teacher_features = self._teacher.features(seen, maps=self.config.phi_kind == "conv")
        weight = next(self.phi.parameters())
        return as_phi_takes_it(teacher_features.to(weight.device, weight.dtype), self.config)

    # ---------------------------------------------------------------------------------------------- saving
    def save_student(self, folder: str | os.PathLike[str], image_processor: Any = None) -> None:
        """Save the student alone, as an ordinary model with its labels, for which nobody needs this package.

        One that wraps a timm model can be loaded by transformers and by timm.

        Args:
            folder: created if needed.
            image_processor: saved in the same folder.

        Raises:
            ValueError: a student with layers of peft.
        """
        save_student(self.student, folder, image_processor)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; with the files that define the model, so that it loads with `trust_remote_code=True` anywhere."""
        classes = {"AutoModel": RDModel, "AutoModelForImageClassification": RDForImageClassification}
        with carrying_code(self, classes):
            super().save_pretrained(save_directory, *args, **kwargs)


class RDModel(RDPreTrainedModel):
    """The features of student and teacher."""

    def forward(
        self,
        pixel_values: Tensor,
        teacher_features: Tensor | None = None,
        teacher_pixel_values: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RDModelOutput | tuple[Any, ...]:
        """Features of images.

        Args:
            pixel_values: `[B, C, H, W]`.
            teacher_features, teacher_pixel_values: see `get_teacher_features`.
            return_dict: False gives a tuple.
            kwargs: for the student.
        """
        own = run_student(self.student, self.classifier, pixel_values, **kwargs)[1]
        features = None
        if self.reads_teacher(teacher_features):
            features = self.get_teacher_features(pixel_values, teacher_features, teacher_pixel_values)
        outputs = RDModelOutput(
            pooler_output=own,
            reprogrammed=None if features is None else self.phi(features),
            teacher_features=features,
        )
        return outputs.to_tuple() if return_dict is False else outputs


class RDForImageClassification(RDPreTrainedModel):
    """The student, trained by reprogramming distillation; in inference nothing but the student."""

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Tensor | None = None,
        teacher_pixel_values: Tensor | None = None,
        output_details: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RDImageClassifierOutput | tuple[Any, ...]:
        """Logits of the student, and with labels a loss: RD's in training mode, the student's own in evaluation mode.

        Args:
            pixel_values: `[B, C, H, W]`.
            labels: int64 `[B]`.
            teacher_features, teacher_pixel_values: see `get_teacher_features`.
            output_details: whether features and single loss terms are given too, those of the teacher in evaluation
                mode only where there is one.
            return_dict: False gives a tuple.
            kwargs: for the student, such as `output_hidden_states`.

        Raises:
            ValueError: labels that are not classes; in training with labels or details, no teacher and no
                features of one.
            ImportError: training with labels where hf_ext is not installed.
        """
        if labels is not None:
            check_labels(labels)
        distils = self.training and labels is not None
        details: dict[str, Any] = {}
        if distils or output_details:
            if self.training or self.reads_teacher(teacher_features):  # before the student's activations take memory
                seen = self.get_teacher_features(pixel_values, teacher_features, teacher_pixel_values)
                details |= {"teacher_features": seen, "reprogrammed": self.phi(seen)}
                details["reprogrammed_logits"] = self.classifier(details["reprogrammed"])
            student_outputs, features = run_student(self.student, self.classifier, pixel_values, **kwargs)
            details["student_features"] = features
        else:
            student_outputs = self.student(pixel_values, **kwargs)
        logits, loss = student_outputs.logits, None
        if labels is not None:
            if "reprogrammed" in details and (distils or rd_losses_of_logits is not None):
                details["losses"] = self._losses(logits, labels, details)
            loss = details["losses"]["total"] if distils else F.cross_entropy(_at_least_float32(logits), labels)
        outputs = RDImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=student_outputs.get("hidden_states"),
            attentions=student_outputs.get("attentions"),
            **(details if output_details else {}),
        )
        return outputs.to_tuple() if return_dict is False else outputs

    def _losses(self, logits: Tensor, labels: Tensor, details: dict[str, Tensor]) -> dict[str, Tensor]:
        if rd_losses_of_logits is None:
            raise ImportError("hf_ext is not installed: training an RD model with labels needs its loss")
        config = self.config
        losses: dict[str, Tensor] = rd_losses_of_logits(
            logits,
            details["reprogrammed_logits"],
            labels,
            details["reprogrammed"],
            details["student_features"],
            alpha=config.alpha,
            gamma=config.gamma,
            beta=config.beta,
            temperature=config.temperature,
            detach_reprogrammed=config.detach_reprogrammed,
            debiased=config.debiased,
        )
        return losses


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


__all__ = ["RDForImageClassification", "RDModel", "RDPreTrainedModel"]

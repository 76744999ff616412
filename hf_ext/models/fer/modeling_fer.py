"""The FER matcher: faces matched to text embeddings of expressions.

Li et al., "Knowledge-Enhanced Facial Expression Recognition with Emotional-to-Neutral Transformation", IEEE
Transactions on Multimedia 2025, https://arxiv.org/abs/2409.08598.
"""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, initialization
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .configuration_fer import FERConfig
from .portable import carrying_code
from .portable_loading import LoadedWhole
from .text import TextEncoder, class_prompts, text_features
from .vision import Vision, pooled, pooled_width, vision_backbone

try:  # the losses; a model that only predicts does without
    from hf_ext.functional import fer_losses
except ImportError:
    fer_losses = None  # type: ignore[assignment]

TEMPLATE = "a photo of a person making a {} facial expression."


@dataclass
class FEROutput(ModelOutput):
    """Output of `FERForImageClassification`; all but `loss` and `logits` only with `output_features=True`.

    Args:
        loss: scalar, of given labels.
        logits: `[B, C]`, float32.
        features, neutral_features: of the faces and their neutral transformation, `[B, D]`.
        text_features: of the classes, raw, `[C, D]`.
        logit_scale: s, scalar.
        loss_match, loss_transform, loss_contrast: the terms of the loss, scalars.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    features: Tensor | None = None
    neutral_features: Tensor | None = None
    text_features: Tensor | None = None
    logit_scale: Tensor | None = None
    loss_match: Tensor | None = None
    loss_transform: Tensor | None = None
    loss_contrast: Tensor | None = None


class FERPreTrainedModel(LoadedWhole):
    """Base of the FER models: initialisation of all but the backbone, saving with their code."""

    config_class = FERConfig
    base_model_prefix = "fer"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _supports_sdpa = True  # where the backbone does
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer has to divide by the accumulation steps

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torch does, for all but the backbone, whose class initialises it."""
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm1d):
            values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
            for name, value in values.items():
                initialization.constant_(getattr(module, name), value)
        elif isinstance(module, TextClassifier):
            initialization.constant_(module.text_features, 0.0)
            if module.log_scale is not None:
                initialization.constant_(module.log_scale, math.log(self.config.logit_scale))

    def get_input_embeddings(self) -> Any:
        """None: pixels are embedded by the backbone, if at all. FSDP2 asks every model."""
        return None

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; with the files that define the model, so that it loads with `trust_remote_code=True` anywhere."""
        classes = {"AutoModel": FERModel, "AutoModelForImageClassification": FERForImageClassification}
        with carrying_code(self, classes):
            super().save_pretrained(save_directory, *args, **kwargs)


class FERModel(FERPreTrainedModel):
    """Faces to features of the texts' width: a vision backbone and a projection."""

    of_larger_models = ("transformation.", "classifier.")

    def __init__(self, config: FERConfig) -> None:
        super().__init__(config)
        self.vision = AutoModel.from_config(config.vision_config)
        if not config.vision_pools and hasattr(self.vision, "pooler"):
            self.vision.pooler = None
        self.supports_gradient_checkpointing = self.vision.supports_gradient_checkpointing
        width = config.text_width
        self.projection: nn.Module = nn.Identity()
        if config.projection == "linear":
            self.projection = nn.Linear(config.vision_width, width, bias=False)
        elif config.projection == "neck":
            self.projection = nn.Sequential(
                nn.Linear(config.vision_width, width, bias=False),
                nn.BatchNorm1d(width, eps=2e-5),
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width, eps=2e-5),
            )
        self.post_init()

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> Any:
        """Features of faces.

        Args:
            pixel_values: `[B, channels, height, width]`.
            return_dict: whether not to return a tuple.

        Returns:
            `pooler_output`: f, `[B, D]`; `last_hidden_state`: the backbone's.
        """
        outputs = self.vision(pixel_values)
        features = self.projection(pooled(outputs, self.config.vision_pools))
        output = BaseModelOutputWithPooling(last_hidden_state=outputs.last_hidden_state, pooler_output=features)
        return output if return_dict is None or return_dict else output.to_tuple()


class TextClassifier(nn.Module):
    """`z_ic = s * u(f_i) . u(T_c)`: a classifier whose weight matrix holds embeddings of texts.

    Args:
        config: with the number of classes, the texts' width, the scale and whether it is trained.
    """

    makes_logits = True  # marks the last layer for DivBS

    def __init__(self, config: FERConfig) -> None:
        super().__init__()
        #: raw features of the class prompts, `[C, D]`; zeros until they are set
        self.text_features: Tensor
        self.register_buffer("text_features", torch.zeros(config.num_labels or 0, config.text_width))
        self.fixed_scale = float(config.logit_scale)
        #: of a learnt scale, `[1]`, since FSDP2 shards no scalar; a scalar in files (see `ReshapedScale`)
        self.log_scale = (
            nn.Parameter(torch.tensor([math.log(config.logit_scale)])) if config.learn_logit_scale else None
        )
        self.register_load_state_dict_pre_hook(_with_scale_as_vector)

    @property
    def scale(self) -> Tensor | float:
        """s; a learnt one is at most 100, and learns on from there."""
        if self.log_scale is None:
            return self.fixed_scale
        log = self.log_scale.float().squeeze()
        return (log + (log.clamp(max=math.log(100.0)) - log).detach()).exp()

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C]`, float32, of features `[B, D]`."""
        # float32, also under autocast: with s = 100 half precision is off by half a logit
        with torch.autocast(features.device.type, enabled=False):
            unit, text = (F.normalize(x.float(), dim=-1) for x in (features, self.text_features))
            return self.scale * unit @ text.T


def _with_scale_as_vector(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    if (saved := state_dict.get(f"{prefix}log_scale")) is not None and saved.ndim == 0:
        state_dict[f"{prefix}log_scale"] = saved.reshape(1)


class ReshapedScale(ConversionOps):
    """The learnt scale between files, where it is a scalar, and the model, where it is not.

    Args:
        shape: what it gets.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """The one tensor of `input_dict` in the other shape, under its target's name."""
        given = next(iter(input_dict.values()))
        return {target_patterns[0]: (given[0] if isinstance(given, list) else given).reshape(self.shape)}

    @property
    def reverse_op(self) -> "ReshapedScale":
        return ReshapedScale(() if self.shape else (1,))


_SCALE = "classifier.log_scale"
register_checkpoint_conversion_mapping(
    FERConfig.model_type, [WeightConverter(_SCALE, _SCALE, [ReshapedScale((1,))])], overwrite=True
)


class FERForImageClassification(FERPreTrainedModel):
    """Classifies a face by the text whose embedding is nearest, by cosine.

    Trained with plain `Trainer` its losses are means over the batch; with `FERTrainer` over the whole batch of an
    update, in all processes, and logged. Inference is the backbone, the projection and one product with the texts'
    embeddings, which the model stores: no text encoder is needed any more.
    """

    def __init__(self, config: FERConfig) -> None:
        super().__init__(config)
        self.fer = FERModel(config)
        self.supports_gradient_checkpointing = self.fer.supports_gradient_checkpointing
        self.transformation = nn.Sequential(
            nn.Linear(config.text_width, config.transformation_width),
            nn.ReLU(),
            nn.Linear(config.transformation_width, config.text_width),
        )
        self.classifier = TextClassifier(config)
        self.post_init()
        self._set_trained()

    def _set_trained(self) -> None:
        # without a neutral class the loss has no use for it, and DDP waits for the gradients of all that has one
        self.transformation.requires_grad_(self.config.neutral_id is not None)

    # ---------------------------------------------------------------------------------------------- making one
    @classmethod
    def from_backbones(
        cls,
        vision: Vision,
        text: TextEncoder,
        class_names: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        template: str = TEMPLATE,
        neutral: str | int | None = "neutral",
        text_tokenizer: Any = None,
        **options: Any,
    ) -> "FERForImageClassification":
        """A matcher from a pretrained vision backbone and the embeddings of texts.

        Of a CLIP-like model (with `visual_projection`) as `vision` the projection is used too: with the same model as
        `text` it classifies before any training.

        Args:
            vision: name or folder of a model with a pooled output, or such a model, of transformers or timm.
            text: what encodes the prompts: name or folder, model, sentence transformer, or texts -> `[N, D]`.
            class_names: names of the classes, in the order of their ids; they become the model's labels.
            prompts: their texts; by default the template filled with the names. Without names they are the labels.
            template: with one `{}`.
            neutral: name or id of the neutral class. None, or no class called so and nothing said here: there is
                none, and two of the three losses are off.
            text_tokenizer: of `text`, if that is a model of transformers.
            **options: of `FERConfig`.

        Raises:
            ValueError: names, prompts, or features that cannot work.
        """
        for name, given in (("class_names", class_names), ("prompts", prompts)):
            if isinstance(given, str):
                raise ValueError(f"{name}: found {given!r}, allowed is a list of texts")
        names = list(class_names) if class_names is not None else list(prompts or ())
        texts = list(prompts) if prompts is not None else class_prompts(names, template)
        _check_classes(names, texts)
        features = text_features(texts, text, text_tokenizer)
        backbone = vision_backbone(vision)
        options.setdefault(
            "text_model", _public(text if isinstance(text, str) else getattr(text, "name_or_path", None) or None)
        )
        if backbone.scale is not None:
            options.setdefault("logit_scale", backbone.scale)
        own: Any = copy.deepcopy(backbone.model.config)
        own.dtype = torch.float32  # whatever the checkpoint's: one for all that is trained
        own._name_or_path = _public(own._name_or_path)
        config = FERConfig(
            vision_config=own,
            vision_width=pooled_width(backbone),
            vision_pools=backbone.pools,
            text_width=features.shape[1],
            class_prompts=texts,
            neutral_id=_neutral_id(neutral, names),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            **options,
        )
        model = cls(config)
        model.fer.vision.load_state_dict(backbone.model.state_dict(), strict=backbone.pools)
        with torch.no_grad():
            model.classifier.text_features.copy_(features)
            projection = backbone.projection
            if projection is not None and config.projection == "linear" and len(projection) == features.shape[1]:
                model.fer.projection.load_state_dict({"weight": projection})
        return model.eval()

    def set_classes(
        self,
        class_names: Sequence[str] | None = None,
        text: TextEncoder = None,
        *,
        prompts: Sequence[str] | None = None,
        template: str = TEMPLATE,
        neutral: str | int | None = "neutral",
        text_tokenizer: Any = None,
    ) -> None:
        """Give the classes other words, or the model other classes, without training.

        Arguments as in `from_backbones`; where no neutral class is named and none is called neutral, its id stays the
        same if there are as many classes as before.

        Raises:
            ValueError: no text encoder, names or prompts that cannot work, or features of another width than the
                model's.
        """
        if text is None:
            raise ValueError("text: found None, allowed is the encoder of texts that the model was made with")
        for name, given in (("class_names", class_names), ("prompts", prompts)):
            if isinstance(given, str):
                raise ValueError(f"{name}: found {given!r}, allowed is a list of texts")
        names = list(class_names) if class_names is not None else list(prompts or ())
        texts = list(prompts) if prompts is not None else class_prompts(names, template)
        _check_classes(names, texts)
        features = text_features(texts, text, text_tokenizer)
        if features.shape[1] != self.config.text_width:
            raise ValueError(
                f"text: found features of width {features.shape[1]}, allowed is {self.config.text_width}: those of "
                "the encoder that the model was made with"
            )
        neutral_id = _neutral_id(neutral, names)
        if neutral_id is None and neutral == "neutral" and len(names) == self.config.num_labels:
            neutral_id = self.config.neutral_id
        self.classifier.text_features = features.to(self.classifier.text_features)
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: number for number, name in enumerate(names)}
        self.config.class_prompts, self.config.neutral_id = texts, neutral_id
        self._set_trained()

    # ---------------------------------------------------------------------------------------------- running it
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_features: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Classify faces; with labels, with the loss.

        Args:
            pixel_values: `[B, channels, height, width]`.
            labels: int64 `[B]`.
            output_features: whether to return features and the terms of the loss too.
            return_dict: whether not to return a tuple.

        Returns:
            `FEROutput`.

        Raises:
            ValueError: no text features have been set (seen on the CPU; elsewhere all logits are zero).
            ImportError: labels, without hf_ext, which has the losses.
        """
        text = self.classifier.text_features
        if text.device.type == "cpu" and not torch.compiler.is_compiling() and not text.any(dim=1).all():
            raise ValueError("text_features: found none, allowed are those of class prompts (see set_classes)")
        features = self.fer(pixel_values).pooler_output
        logits = self.classifier(features)
        # the small network is for the loss alone
        neutral = self.transformation(features) if labels is not None or output_features else features
        terms = None if labels is None else self._losses(features, neutral, labels)
        output = FEROutput(loss=None if terms is None else terms["total"], logits=logits)
        if output_features:
            output.features, output.neutral_features = features, neutral
            output.text_features, output.logit_scale = text, torch.as_tensor(self.classifier.scale)
            for name in ("match", "transform", "contrast"):
                output[f"loss_{name}"] = None if terms is None else terms[name]
        return output if return_dict is None or return_dict else output.to_tuple()

    def _losses(self, features: Tensor, neutral_features: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        if fer_losses is None:
            raise ImportError("hf_ext is needed for the losses of the FER matcher: pip install hf-ext")
        config = self.config
        return fer_losses(
            features,
            neutral_features,
            self.classifier.text_features,
            labels,
            neutral_id=config.neutral_id,
            logit_scale=self.classifier.scale,
            contrast_pairs=config.contrast_pairs,
            lambda_s=config.lambda_s,
            lambda_t=config.lambda_t,
            lambda_c=config.lambda_c,
        )


def _public(name: str | None) -> str | None:
    """A name to publish: of a folder of this machine the last part."""
    return os.path.basename(os.path.abspath(name)) if name and os.path.isdir(name) else name


def _check_classes(names: Sequence[str], texts: Sequence[str]) -> None:
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"class_names: found {list(names)!r}, allowed are two names or more, all different")
    if len(texts) != len(names):
        raise ValueError(f"prompts: found {len(texts)} for {len(names)} class names, allowed is one for each")
    for number, text in enumerate(texts):
        if text in texts[:number]:
            same = ", ".join(name for name, other in zip(names, texts, strict=True) if other == text)
            raise ValueError(
                f"prompts: found {text!r} for each of {same}, allowed is a text of its own for every class"
            )


def _neutral_id(neutral: str | int | None, names: Sequence[str]) -> int | None:
    """The neutral class; a name in any case of letters."""
    if isinstance(neutral, bool) or (isinstance(neutral, int) and not 0 <= neutral < len(names)):
        raise ValueError(f"neutral: found {neutral}, allowed are None, a name, or 0 to {len(names) - 1}")
    if neutral is None or isinstance(neutral, int):
        return neutral
    matches = [number for number, name in enumerate(names) if name.lower() == neutral.lower()]
    if not matches and neutral != "neutral":
        raise ValueError(f"neutral: found {neutral!r}, allowed are None, an id, or one of {', '.join(names)}")
    return matches[0] if matches else None

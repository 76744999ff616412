"""FER matchers: made of any backbone and any text encoder, saved, loaded, exported, adapted."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from toy_models import BACKBONES, backbone, bert, clip, embed, siglip, tokenizer
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

from hf_ext.functional import fer_losses, similarity_logits
from hf_ext.models import FERConfig, FERForImageClassification, FERModel, FERProcessor
from hf_ext.models.fer.text import text_features

NAMES = ["happy", "sad", "neutral"]


def _matcher(kind: str = "resnet", **options: Any) -> FERForImageClassification:
    torch.manual_seed(0)
    return FERForImageClassification.from_backbones(backbone(kind), embed, NAMES, **options).eval()


def _images(rows: int = 4, size: int = 16) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(4))


# ------------------------------------------------------------------------------------------------ making one
@pytest.mark.parametrize("kind", BACKBONES)
def test_every_backbone_keeps_its_weights_and_is_saved_whole(kind: str, tmp_path: Path) -> None:
    model, original = _matcher(kind), backbone(kind)
    assert model.fer.vision.state_dict().keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(value, model.fer.vision.state_dict()[name]), name
    pixels = _images()
    features = model(pixels, output_features=True).features
    pooled = original(pixels).pooler_output.flatten(1)
    torch.testing.assert_close(features, pooled @ model.fer.projection.weight.T)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is FERForImageClassification
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is FERModel
    torch.testing.assert_close(bare(pixels).pooler_output, features)
    assert loaded.config.vision_config.num_labels == model.config.vision_config.num_labels
    assert loaded.config.id2label == {0: "happy", 1: "sad", 2: "neutral"}


def test_timm_models_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = timm.create_model("test_resnet", num_classes=0).eval()
    model = FERForImageClassification.from_backbones(vision, embed, NAMES).eval()
    pixels = _images()
    pooled = model.fer.vision(pixels).pooler_output
    torch.testing.assert_close(pooled, vision(pixels))
    with pytest.raises(ValueError, match="vision: found a test_vit of timm with options of its own"):
        other = timm.create_model("test_vit", num_classes=0, embed_dim=32)
        FERForImageClassification.from_backbones(other, embed, NAMES)


def test_a_clip_like_model_classifies_before_any_training() -> None:
    dual, words = clip(), tokenizer(ends=True)
    model = FERForImageClassification.from_backbones(dual, dual, NAMES, text_tokenizer=words).eval()
    tokens = words(model.config.class_prompts, padding=True, return_tensors="pt")
    pixels = _images()
    with torch.no_grad():
        expected = dual(pixel_values=pixels, **tokens).logits_per_image
        torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert model.config.logit_scale == pytest.approx(dual.logit_scale.exp().item())


def test_a_siglip_like_model_too() -> None:
    dual, words = siglip(), tokenizer()
    words.model_max_length = 16
    model = FERForImageClassification.from_backbones(dual, dual, NAMES, text_tokenizer=words)
    tokens = words(model.config.class_prompts, padding="max_length", truncation=True, return_tensors="pt")
    pixels = _images()
    with torch.no_grad():
        found = dual(pixel_values=pixels, **tokens)
        torch.testing.assert_close(
            model(pixels).logits, found.logits_per_image - dual.logit_bias, rtol=1e-4, atol=1e-4
        )


def test_a_backbone_in_half_precision_is_trained_in_float32(tmp_path: Path) -> None:
    backbone("vit").half().save_pretrained(tmp_path)
    model = FERForImageClassification.from_backbones(str(tmp_path), embed, NAMES)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    model.train()(_images(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    model.save_pretrained(tmp_path / "matcher")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "matcher").dtype == torch.float32


def test_a_classifier_without_a_pooler_gives_its_first_token(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    classifier = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes)).eval()
    classifier.save_pretrained(tmp_path)
    model = FERForImageClassification.from_backbones(str(tmp_path), embed, NAMES)
    pixels = _images()
    expected = classifier.vit(pixels).last_hidden_state[:, 0] @ model.fer.projection.weight.T
    torch.testing.assert_close(model(pixels, output_features=True).features, expected)
    model.save_pretrained(tmp_path / "matcher")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "matcher")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize("start", [50.0, 100.0])
def test_a_learnt_scale_learns(start: float) -> None:
    model = _matcher(learn_logit_scale=True, logit_scale=start)
    model(_images(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert model.classifier.log_scale.grad.abs() > 0
    with torch.no_grad():
        model.classifier.log_scale.add_(5)
        assert float(model.classifier.scale) == pytest.approx(100.0)


def test_a_learnt_scale_is_a_scalar_in_files(tmp_path: Path) -> None:
    """FSDP2 shards no scalars, and files of earlier versions hold one."""
    model = _matcher(learn_logit_scale=True, logit_scale=20.0)
    with torch.no_grad():
        model.classifier.log_scale.add_(0.5)
    assert model.classifier.log_scale.shape == (1,) and model.classifier.scale.shape == ()
    for again in (model, AutoModelForImageClassification.from_pretrained(_saved(model, tmp_path / "first"))):
        saved = load_file(_saved(again, tmp_path / "second") / "model.safetensors")
        assert saved["classifier.log_scale"].shape == ()
        torch.testing.assert_close(again.classifier.scale, model.classifier.scale, rtol=0, atol=0)
    other = _matcher(learn_logit_scale=True)
    other.load_state_dict(saved)  # as Trainer does, of a checkpoint
    assert torch.equal(other.classifier.log_scale, model.classifier.log_scale)


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_derived_class_is_saved_without_code(tmp_path: Path) -> None:
    class Mine(FERForImageClassification):
        pass

    Mine(_matcher().config).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.py"))


def test_text_encoders() -> None:
    texts = ["happy person", "sad"]
    encoder, words = bert(), tokenizer()
    tokens = words(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**tokens).last_hidden_state
        expected = torch.stack([states[0, :2].mean(0), states[1, 0]])
    torch.testing.assert_close(text_features(texts, encoder.train(), words), expected)
    assert encoder.training

    class Sentences:
        def encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
            return embed(texts).numpy()

    assert torch.equal(text_features(texts, Sentences()), embed(texts))
    with pytest.raises(ValueError, match="text_tokenizer: found None with a BertModel"):
        text_features(texts, bert())
    with pytest.raises(ValueError, match=r"text: found features of shape \(1, 12\) for 2 texts"):
        text_features(texts, lambda _: embed(["one"]))
    with pytest.raises(ValueError, match="prompts: found"):
        text_features(["", "sad"], embed)
    with pytest.raises(ValueError, match="text: found one direction for 'angry' and 'fearful', allowed"):
        text_features(["sad", "angry", "fearful"], bert(), words)  # which knows neither
    assert len(text_features(["sad", "sad"], bert(), words)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["happy", "happy"]}, "class_names: found"),
        ({"class_names": "happy"}, "class_names: found 'happy', allowed is a list of texts"),
        ({"template": "a face"}, "template: found 'a face', allowed is a text with one"),
        ({"prompts": ["one", "two"]}, "prompts: found 2 for 3 class names"),
        ({"neutral": "angry"}, "neutral: found 'angry', allowed are"),
        ({"neutral": 3}, "neutral: found 3, allowed are None, a name, or 0 to 2"),
        ({"neutral": True}, "neutral: found True, allowed are None, a name, or 0 to 2"),
        ({"projection": "none"}, "projection: found 'none' for the widths 16 and 12"),
        ({"logit_scale": 0.0}, r"logit_scale: found 0.0, allowed are numbers > 0"),
        ({"lambda_t": -1.0}, "lambda_t: found -1.0"),
        ({"vision": nn.Linear(2, 2)}, "vision: found Linear, allowed are"),
    ],
)
def test_what_cannot_work(options: dict[str, Any], message: str) -> None:
    vision, names = options.pop("vision", backbone()), options.pop("class_names", NAMES)
    with pytest.raises(ValueError, match=message):
        FERForImageClassification.from_backbones(vision, embed, names, **options)


def test_another_number_of_classes_is_refused_and_none_at_all_too(tmp_path: Path) -> None:
    _matcher().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_labels: found 5 for 3 class prompts"):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    unset = FERForImageClassification(FERConfig(vision_config=backbone().config, vision_width=16, num_labels=3))
    with pytest.raises(ValueError, match="text_features: found none"):
        unset(_images())


def test_other_words_and_other_classes() -> None:
    model, pixels = _matcher(), _images()
    before = model(pixels, output_features=True)
    model.set_classes(text=embed, prompts=["joy", "neutral", "grief", "anger"], neutral="neutral")
    after = model(pixels, output_features=True)
    assert torch.equal(after.features, before.features)
    expected = similarity_logits(before.features, embed(["joy", "neutral", "grief", "anger"]), logit_scale=100.0)
    torch.testing.assert_close(after.logits, expected)
    assert model.config.num_labels == 4 and model.config.neutral_id == 1
    assert model(pixels, labels=torch.tensor([3, 1, 0, 2])).loss.isfinite()
    model.set_classes(text=embed, prompts=["a joy", "calm", "a grief", "an anger"])  # as many: calm is neutral now
    assert model.config.neutral_id == 1
    with pytest.raises(ValueError, match="text: found None, allowed is the encoder"):
        model.set_classes(NAMES)
    with pytest.raises(ValueError, match="text: found features of width 3, allowed is 12"):
        model.set_classes(NAMES, lambda texts: torch.rand(len(texts), 3))
    assert model.config.num_labels == 4


def test_the_initialisation_is_torchs() -> None:
    model = _matcher(projection="neck", learn_logit_scale=True)
    torch.testing.assert_close(model.classifier.scale, torch.tensor(100.0))
    weights = [module.weight for module in model.transformation if isinstance(module, nn.Linear)]
    for weight in weights:
        bound = weight.shape[1] ** -0.5
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


# ------------------------------------------------------------------------------------------------ running it
@pytest.mark.parametrize("pairs", ["all", "paired"])
def test_the_loss_is_that_of_the_equations(pairs: str) -> None:
    model = _matcher(contrast_pairs=pairs, lambda_t=0.5, lambda_c=0.25)
    labels = torch.tensor([0, 2, 1, 0])
    found = model(_images(), labels=labels, output_features=True)
    expected = fer_losses(
        found.features,
        found.neutral_features,
        embed(model.config.class_prompts),
        labels,
        neutral_id=2,
        logit_scale=100.0,
        contrast_pairs=pairs,  # type: ignore[arg-type]
        lambda_t=0.5,
        lambda_c=0.25,
    )
    torch.testing.assert_close(found.loss, expected["total"])
    torch.testing.assert_close(found.loss_contrast, expected["contrast"])
    plain = model(_images(), labels=labels)
    assert list(plain.keys()) == ["loss", "logits"]
    assert torch.equal(plain.loss, found.loss)
    assert model(_images(), labels=labels, return_dict=False)[1].shape == (4, 3)


def test_without_a_neutral_class() -> None:
    model = FERForImageClassification.from_backbones(backbone(), embed, ["cat", "dog"]).eval()
    found = model(_images(), labels=torch.tensor([0, 1, 1, 0]), output_features=True)
    assert found.loss_transform == found.loss_contrast == 0 and found.loss == found.loss_match


def test_autocast_and_half_precision(tmp_path: Path) -> None:
    model, pixels = _matcher("vit"), _images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(pixels, labels=torch.tensor([0, 1, 2, 0]))
    assert found.logits.dtype == found.loss.dtype == torch.float32
    model.save_pretrained(tmp_path)
    half = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.classifier.text_features.dtype == torch.bfloat16
    assert half(pixels.bfloat16()).logits.dtype == torch.float32


def test_export_and_compile() -> None:
    model, pixels = _matcher(), _images()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (pixels,), dynamic_shapes={"pixel_values": {0: batch}}, strict=False)
    with torch.no_grad():
        for rows in (pixels, _images(7)):
            torch.testing.assert_close(program.module()(rows)["logits"], model(rows).logits, rtol=1e-4, atol=1e-4)
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)


def test_gradient_checkpointing_where_the_backbone_can() -> None:
    model = _matcher("vit").train()
    labels = torch.tensor([0, 1, 2, 0])
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(_images(), labels=labels).loss.backward()
        grads.append(model.fer.vision.get_parameter("embeddings.cls_token").grad.clone())
    assert grads[0].any()
    torch.testing.assert_close(grads[0], grads[1])
    with pytest.raises(ValueError, match=r"does not support (gradient|activation) checkpointing"):
        _matcher("resnet").gradient_checkpointing_enable()


def test_lora_on_the_backbone(tmp_path: Path) -> None:
    base = _matcher("vit")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["projection", "transformation"])
    model = get_peft_model(base, config)
    model(_images(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    trained = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()]
    assert any("lora_B" in name for name in trained) and any("transformation" in name for name in trained)


# ------------------------------------------------------------------------------------------------ around it
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_the_processor_and_the_pipeline(kind: str, tmp_path: Path) -> None:
    model = _matcher(kind)
    processor = FERProcessor.from_backbone(backbone(kind), size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    face = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 20), dtype=np.uint8))  # grey
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(face, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.equal(processor(images=face, return_tensors="pt")["pixel_values"], pixels)
    found = {row["label"]: row["score"] for row in pipeline("image-classification", model=str(tmp_path))(face)}
    expected = model(pixels).logits.softmax(-1)[0].tolist()
    assert [found[name] for name in NAMES] == pytest.approx(expected, abs=1e-6)


def test_it_runs_where_nobody_has_heard_of_us(tmp_path: Path) -> None:
    model, pixels = _matcher("vit", learn_logit_scale=True), _images()
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    again.save_pretrained(tmp_path / "again")
    assert model.config.to_dict().get("auto_map") is None and type(model)._auto_class is None
    torch.save({"pixels": pixels, "logits": model(pixels).logits}, tmp_path / "expected.pt")
    code = f"""
import sys

class Nowhere:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "hf_ext":
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Nowhere())
import torch
from transformers import AutoModel, AutoModelForImageClassification

expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
for folder in ({str(tmp_path / "model")!r}, {str(tmp_path / "again")!r}):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    assert "transformers_modules" in type(model).__module__
    assert torch.equal(model(expected["pixels"]).logits, expected["logits"])
    assert AutoModel.from_pretrained(folder, trust_remote_code=True)(expected["pixels"]).pooler_output.shape[0] == 4
try:
    model(expected["pixels"], labels=torch.zeros(4, dtype=torch.int64))
except ImportError as error:
    assert "hf_ext is needed" in str(error)
else:
    raise AssertionError
model.save_pretrained({str(tmp_path / "third")!r})
third = AutoModelForImageClassification.from_pretrained({str(tmp_path / "third")!r}, trust_remote_code=True)
assert torch.equal(third(expected["pixels"]).logits, expected["logits"])
"""
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_plain_trainer_trains_it(tmp_path: Path) -> None:
    rows = [{"pixel_values": image, "labels": number % 3} for number, image in enumerate(_images(24))]
    model = _matcher("vit").train()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows, compute_metrics=accuracy)  # type: ignore[arg-type]
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] and 0 <= after["eval_accuracy"] <= 1
    assert not trainer.model_accepts_loss_kwargs


def test_the_processor_is_found_by_its_own_class(tmp_path: Path) -> None:
    processor = FERProcessor.from_backbone(backbone("timm"))
    processor.save_pretrained(tmp_path)
    known = backbone("timm").config.pretrained_cfg
    assert processor.size == {"height": known["input_size"][1], "width": known["input_size"][2]}
    assert list(processor.image_mean) == list(known["mean"])
    loaded = FERProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FERProcessor and loaded.to_dict() == processor.to_dict()
    again = FERProcessor.from_backbone(str(tmp_path))
    assert again.size == processor.size and again.image_mean == processor.image_mean


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "LA", "I;16"])
def test_images_of_every_mode_are_the_same_picture(mode: str) -> None:
    """In its constructor's own settings, too: grey values are those of the picture, 16 bits are not cut off at 8."""
    grey = np.zeros((12, 12), dtype=np.uint8)
    grey[:, 6:] = 255
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    assert picture.mode == mode
    processor = FERProcessor(size={"height": 12, "width": 12})
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    expected = processor(Image.fromarray(np.stack([grey] * 3, axis=-1)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 12, 12)
    torch.testing.assert_close(pixels, expected, atol=0.02, rtol=0)


def test_arrays_of_pixels_and_their_channels() -> None:
    processor = FERProcessor(size={"height": 12, "width": 12})
    deep = np.full((12, 12, 1), 65535, dtype=np.uint16)
    assert processor(deep, return_tensors="pt")["pixel_values"].shape == (1, 3, 12, 12)
    assert processor(deep, return_tensors="pt")["pixel_values"].max() == 1
    grey = processor(np.zeros((1, 12, 12), np.uint8), do_convert_rgb=False, do_normalize=False, return_tensors="pt")
    assert grey["pixel_values"].shape == (1, 1, 12, 12)
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"images: found mode '{mode}', of no known range"):
            processor(Image.new(mode, (12, 12)), return_tensors="pt")


def test_two_classes_of_one_text() -> None:
    message = "prompts: found 'a smile' for each of happy, sad, allowed is a text of its own for every class"
    prompts = ["a smile", "a smile", "a face"]
    with pytest.raises(ValueError, match=message):
        FERForImageClassification.from_backbones(backbone("resnet"), embed, NAMES, prompts=prompts)
    model = _matcher()
    with pytest.raises(ValueError, match=message):
        model.set_classes(NAMES, embed, prompts=prompts)
    assert model.config.class_prompts != prompts

"""`hf-ext train fer` and `hf-ext demo fer`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_ext.commands.cli import main
from hf_ext.models import FERForImageClassification, FERProcessor

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a tiny vision backbone and a tiny text encoder, as they come from the Hub."""
    torch.manual_seed(0)
    vision, text = tmp_path / "vision", tmp_path / "text"
    ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(vision)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(vision)
    BertModel(BertConfig(vocab_size=20, **SIZES)).save_pretrained(text)
    words = ["[PAD]", "[UNK]", "a", "photo", "of", "person", "making", "facial", "expression."]
    words += ["happy", "neutral", "sad", "calm"]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(text)
    return vision, text


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of images for every expression, in two splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("happy", "neutral", "sad"):
            folder = tmp_path / "faces" / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                grey = rng.integers(0, 255, (20, 18), dtype=np.uint8)
                Image.fromarray(grey).save(folder / f"{number}.png")
    return tmp_path / "faces"


def _short(out: Path) -> list[str]:
    sizes = ["--max_steps", "2", "--per_device_train_batch_size", "6", "--use_cpu", "true", "--report_to", "none"]
    return ["--output_dir", str(out), *sizes]


def test_from_a_folder_of_images_to_a_model_that_loads(
    parts: tuple[Path, Path], faces: Path, tmp_path: Path, run_snippet: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    words = ["train", "fer", "--vision_model", str(parts[0]), "--text_model", str(parts[1]), "--dataset", str(faces)]
    assert main([*words, *_short(out)]) == 0
    model = AutoModelForImageClassification.from_pretrained(out)
    assert type(model) is FERForImageClassification
    assert model.config.class_prompts[0] == "a photo of a person making a happy facial expression."
    assert model.config.neutral_id == 1
    card = ModelCard.load(out / "README.md")
    assert "facial-expression-recognition" in card.data.tags and card.data.pipeline_tag == "image-classification"
    found = pipeline("image-classification", model=str(out))(str(faces / "test" / "sad" / "0.png"))
    assert {row["label"] for row in found} == {"happy", "neutral", "sad"}
    assert f"| vision_model | {parts[0].name} (" in card.text and f"| text_model | {parts[1].name} |" in card.text
    assert not any(str(tmp_path) in (out / name).read_text() for name in ("README.md", "config.json"))
    snippets = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    Image.new("L", (20, 20)).save(tmp_path / "image.png")
    assert len(snippets) == 2 and "neutral" in run_snippet("\n".join(snippets), cwd=tmp_path)
    # goes on with the saved one
    again = ["train", "fer", "--model_name_or_path", str(out), "--dataset", str(faces)]
    assert main([*again, *_short(tmp_path / "again")]) == 0


def test_which_model_has_to_be_said(
    parts: tuple[Path, Path], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, text = map(str, parts)
    for words in ([], ["--vision_model", vision], ["--model_name_or_path", vision, "--text_model", text]):
        assert main(["train", "fer", *words, "--dataset", str(faces), *_short(tmp_path / "out")]) == 2
        assert "model_name_or_path, vision_model, text_model: found" in capsys.readouterr().err
    words = ["--vision_model", vision, "--text_model", text, "--neutral", "calm", "--dataset", str(faces)]
    assert main(["train", "fer", *words, *_short(tmp_path / "out")]) == 2
    assert "neutral: found 'calm', allowed are None, an id, or one of" in capsys.readouterr().err


def test_mistakes_name_their_argument(
    parts: tuple[Path, Path], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, text = map(str, parts)
    new = ["--vision_model", vision, "--text_model", text]
    saved = ["--model_name_or_path", vision]  # never loaded
    for words, message in (
        (["--vision_model", "./nope", "--text_model", text], "vision_model: found './nope', which is no folder"),
        (["--vision_model", vision, "--text_model", "a/b/c"], "text_model: found 'a/b/c', which is no folder"),
        (["--model_name_or_path", "~/nope"], "model_name_or_path: found '~/nope', which is no folder"),
        ([*saved, "--neutral", "calm"], "neutral: found 'calm' with a saved matcher"),
        ([*saved, "--template", "{}"], "template: found '{}' with a saved matcher"),
        ([*saved, "--class_prompts", "a"], "class_prompts: found ['a'] with a saved matcher"),
        ([*saved, "--image_side", "16"], "image_side: found 16 with a saved matcher"),
        ([*new, "--dataset", ""], "dataset: found nothing, allowed is"),
    ):
        assert main(["train", "fer", "--dataset", str(faces), *words, *_short(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", "fer", *new, *_short(tmp_path / "out")]) == 2
    assert "dataset: found nothing, allowed is" in capsys.readouterr().err


def test_models_that_cannot_take_the_images(
    parts: tuple[Path, Path], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, text = map(str, parts)
    bare, grey = str(tmp_path / "bare"), str(tmp_path / "grey")
    ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(bare)
    ViTModel(ViTConfig(image_size=16, patch_size=8, num_channels=1, **SIZES)).save_pretrained(grey)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5]).save_pretrained(grey)
    for (vision_model, text_model, *words), message in (
        ((text, vision), f"vision_model: found {text!r}, a model of texts (bert)"),
        ((vision, vision), f"text_model: found {vision!r}, a model of images (vit)"),
        ((bare, text), f"vision_model: found {bare!r} without an image processor"),
        ((vision, text, "--image_side", "24"), "vision_model, image_side: found a model that fails with images of sh"),
        ((grey, text), "vision_model, image_side: found a model that fails with images of shape (3, 16, 16)"),
    ):
        models = ["--vision_model", vision_model, "--text_model", text_model]
        assert main(["train", "fer", "--dataset", str(faces), *models, *words, *_short(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_without_a_neutral_class(
    parts: tuple[Path, Path], faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        (faces / split / "neutral").rename(faces / split / "calm")
    words = ["train", "fer", "--vision_model", str(parts[0]), "--text_model", str(parts[1]), "--dataset", str(faces)]
    assert main([*words, *_short(tmp_path / "out")]) == 0
    assert caplog.text.count("neutral: found no such class among calm, happy, sad, so two of the three losses") == 1


@pytest.mark.slow
def test_demo_and_the_launch_script(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    out = tmp_path / "hf_ext_demo_fer"
    assert main(["demo", "fer", "--out", str(out), "--seeds", "1", "--steps", "20"]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "texts.png", "modeling_fer.py"} <= names
    card = ModelCard.load(out / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}
    snippet = card.text.split("```python\n")[1].split("```")[0]
    assert "tensor(" in run_snippet(snippet, cwd=tmp_path)

    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "cpu.yaml"), str(EXAMPLES / "fer.py")]
    command += ["--config", str(EXAMPLES / "fer_digits.yaml"), "--max_steps", "2", "--use_cpu", "true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "fer_digits" / "modeling_fer.py").is_file()


def test_a_saved_matcher_of_classes_in_another_order(faces: Path, tmp_path: Path) -> None:
    """Folders count by their names; the matcher's loss is that of its own order."""
    torch.manual_seed(0)
    names, saved, out = ["sad", "happy", "neutral"], tmp_path / "saved", tmp_path / "out"
    vision = ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES))
    model = FERForImageClassification.from_backbones(vision, lambda _: torch.eye(3, 12), names, logit_scale=10.0)
    model.save_pretrained(saved)
    processor = FERProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(saved)
    words = ["train", "fer", "--model_name_or_path", str(saved), "--dataset", str(faces), "--learning_rate", "0"]
    assert main([*words, *_short(out), "--per_device_eval_batch_size", "18"]) == 0
    files = [(file, name) for name in names for file in sorted((faces / "test" / name).iterdir())]
    pixels = processor([Image.open(file) for file, _ in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        loss = model.eval()(pixels, labels=torch.tensor([names.index(name) for _, name in files])).loss
    assert json.loads((out / "eval_results.json").read_text())["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)

"""`hf-ext train rd` and `hf-ext demo rd`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_ext.commands.cli import main
from hf_ext.models import RDForImageClassification
from hf_ext.models.rd.student_rd import save_student

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a tiny student and a teacher that sees larger images."""
    torch.manual_seed(0)
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(resnet).save_pretrained(student)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(student)
    ViTModel(ViTConfig(image_size=24, patch_size=8, **SIZES)).save_pretrained(teacher)
    ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.1] * 3).save_pretrained(teacher)
    return student, teacher


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images for every class, in two splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("benign", "malignant"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(rng.integers(0, 255, (20, 18, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def _short(out: Path) -> list[str]:
    sizes = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "true", "--report_to", "none"]
    return ["--output_dir", str(out), *sizes]


def test_from_a_folder_of_images_to_a_student_that_loads(
    parts: tuple[Path, Path], images: Path, tmp_path: Path, run_snippet: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    words = ["train", "rd", "--model_name_or_path", str(parts[0]), "--teacher_model", str(parts[1])]
    assert main([*words, "--dataset", str(images), "--rd_cache_teacher", "true", *_short(out)]) == 0
    model = AutoModelForImageClassification.from_pretrained(out)
    assert type(model) is RDForImageClassification
    assert model.config.teacher_size == [24, 24] and model.config.teacher_mean == [0.1] * 3
    student = AutoModelForImageClassification.from_pretrained(out / "student")
    assert type(student) is ResNetForImageClassification
    assert student.config.id2label == {0: "benign", 1: "malignant"}
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(student.eval()(pixels).logits, model.eval()(pixels).logits)
    assert (out / "student" / "preprocessor_config.json").is_file()
    card = ModelCard.load(out / "README.md")
    for row in (
        "| teacher | million weights |",
        "| reprogrammed features | accuracy |",
        "| teacher | ms per image (med",
    ):
        assert row in card.text
    assert {result.metric_type for result in card.data.eval_results} == {"loss", "accuracy"}
    assert (out / "teacher_comparison_results.json").is_file()
    assert "knowledge-distillation" in card.data.tags and card.data.pipeline_tag == "image-classification"
    assert "| student | student (resnet) |" in card.text and "| classes | benign, malignant |" in card.text
    snippets = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    Image.new("L", (20, 20)).save(tmp_path / "image.png")
    assert len(snippets) == 3 and "malignant" in run_snippet("\n".join(snippets), cwd=tmp_path)
    # goes on with the saved one, which knows its teacher
    again = ["train", "rd", "--model_name_or_path", str(out), "--dataset", str(images)]
    assert main([*again, *_short(tmp_path / "again")]) == 0
    lora = tmp_path / "lora"
    assert main([*again, "--lora_r", "2", "--learning_rate", "0.1", *_short(lora)]) == 0
    assert "| teacher | million weights |" in (lora / "README.md").read_text()
    adapter = json.loads((lora / "adapter_config.json").read_text())
    assert all(name.startswith("student.") and "classifier" not in name for name in adapter["target_modules"])
    assert {"student.classifier.1", "phi"} <= set(adapter["modules_to_save"])
    # the student in it is an ordinary one, and equal to the adapter's
    merged = AutoModelForImageClassification.from_pretrained(lora / "student")
    assert set(merged.state_dict()) == set(student.state_dict())
    tuned = PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(out), lora)
    torch.testing.assert_close(merged.eval()(pixels).logits, tuned.eval()(pixels).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(pixels).logits, model(pixels).logits, atol=1e-3)


def test_a_timm_student_leaves_what_prepares_its_images(
    parts: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    out, timms = tmp_path / "out", tmp_path / "timm"
    known = {"architecture": "test_resnet", "pretrained_cfg": timm.create_model("test_resnet").pretrained_cfg}
    config = TimmWrapperConfig.from_dict(known, num_labels=2)
    save_student(TimmWrapperForImageClassification(config), timms)
    words = ["train", "rd", "--model_name_or_path", str(timms), "--teacher_model", str(parts[1])]
    assert main([*words, "--dataset", str(images), *_short(out)]) == 0
    image = Image.open(images / "test" / "benign" / "0.png")
    pixels = [AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt") for folder in (out, timms)]
    torch.testing.assert_close(pixels[0]["pixel_values"], pixels[1]["pixel_values"], rtol=0, atol=0.02)  # 1 of 255
    for folder in (out, out / "student"):
        found = pipeline("image-classification", model=str(folder), trust_remote_code=True)(image)
        assert {row["label"] for row in found} == {"benign", "malignant"}


def test_models_that_cannot_take_the_images(
    parts: tuple[Path, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts[1] / "preprocessor_config.json").unlink()
    for message in (
        "teacher_model: found a model that fails with images of shape (3, 16, 16)",  # it was made for 24
        f"model_name_or_path: found {str(parts[0])!r} without an image processor",
    ):
        words = ["train", "rd", "--model_name_or_path", str(parts[0]), "--teacher_model", str(parts[1])]
        assert main([*words, "--dataset", str(images), *_short(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        (parts[0] / "preprocessor_config.json").unlink(missing_ok=True)


def test_the_seed_covers_the_first_weights(parts: tuple[Path, Path], images: Path, tmp_path: Path) -> None:
    words = ["train", "rd", "--model_name_or_path", str(parts[0]), "--teacher_model", str(parts[1])]
    weights = []
    for number, seed in enumerate(("1", "1", "2")):
        out = tmp_path / f"run{number}"
        assert main([*words, "--dataset", str(images), "--seed", seed, "--learning_rate", "0", *_short(out)]) == 0
        weights.append(load_file(out / "model.safetensors"))
    same = [[torch.equal(weights[0][name], other[name]) for name in weights[0]] for other in weights[1:]]
    assert all(same[0]) and not all(same[1])


def test_no_lora_on_a_new_model(
    parts: tuple[Path, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "rd", "--model_name_or_path", str(parts[0]), "--teacher_model", str(parts[1])]
    assert main([*words, "--dataset", str(images), "--lora_r", "4", *_short(tmp_path / "out")]) == 2
    assert "lora_r: found 4 with a new RD model" in capsys.readouterr().err


def test_both_models_have_to_be_said(
    parts: tuple[Path, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        ([], "model_name_or_path: found nothing"),
        (["--model_name_or_path", str(parts[0])], "teacher_model: found nothing"),
        (["--model_name_or_path", "./nope"], "model_name_or_path: found './nope', which is no folder"),
        (["--model_name_or_path", str(parts[0]), "--teacher_model", "./nope"], "teacher_model: found './nope', which"),
        (["--model_name_or_path", str(parts[0]), "--dataset", ""], "dataset: found nothing"),
    ):
        assert main(["train", "rd", "--dataset", str(images), *words, *_short(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_demo_and_the_launch_script(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    out = tmp_path / "hf_ext_demo_rd"
    assert main(["demo", "rd", "--out", str(out), "--seeds", "1", "--steps", "20"]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_rd.py", "student"} <= names
    card = ModelCard.load(out / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}
    for row in ("| teacher | million weights |", "| reprogrammed features | accuracy |", "| **RD** | accuracy |"):
        assert row in card.text
    snippet = card.text.split("```python\n")[1].split("```")[0]
    assert "tensor(" in run_snippet(snippet, cwd=tmp_path)

    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **SIZES))
    vit.save_pretrained(tmp_path / "hf_ext_demo_divbs")
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "cpu.yaml"), str(EXAMPLES / "rd.py")]
    command += ["--config", str(EXAMPLES / "rd_digits.yaml"), "--max_steps", "2", "--use_cpu", "true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "rd_digits" / "student" / "model.safetensors").is_file()

"""`hf-ext train tarf` and `hf-ext demo tarf`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_ext.commands.cli import main


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes))
    vit.save_pretrained(tmp_path / "vit")
    example = Path(__file__).parents[2] / "examples" / "tarf_digits.yaml"
    words = ["train", "tarf", "--config", str(example), "--model_name_or_path", str(tmp_path / "vit")]
    short = ["--num_train_epochs", "1", "--per_device_train_batch_size", "128", "--use_cpu", "true"]
    return [*words, "--output_dir", str(tmp_path / "out"), *short]


def test_train_leaves_a_folder_that_loads(options: list[str], tmp_path: Path) -> None:
    assert main(options) == 0
    out = tmp_path / "out"
    assert AutoModelForImageClassification.from_pretrained(out).config.num_labels == 10
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and "machine-unlearning" in card.data.tags
    assert "tarf_forget_value" in card.text and "rows to forget" in card.text
    assert all(f"| **TARF** | {name} |" in card.text for name in ("UA", "RA", "TA", "MIA"))
    assert "eval_forgotten_accuracy" in json.loads((out / "forgotten_results.json").read_text())


def test_what_to_forget_has_to_be_said(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = options[:2] + options[4:]
    assert main([*words, "--dataset", "digits"]) == 2
    assert "tarf_forget_column: found none" in capsys.readouterr().err
    assert main([*options, "--tarf_t1", "3"]) == 2
    assert "tarf_t1: found 3 with 1 epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], run_snippet: Callable[..., str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "tarf", "--out", str(out), "--seeds", "1", "--steps", "20"]) == 0
    assert AutoModelForImageClassification.from_pretrained(out).config.num_labels == 5
    text = capsys.readouterr().out
    assert "gradient ascent" in text and "retrained" in text and "What the study found:" in text
    assert {"README.md", "config.json", "model.safetensors", "gravity.png"} <= {path.name for path in out.iterdir()}
    card = ModelCard.load(out / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"UA", "RA", "TA", "MIA", "gap"}
    snippet = card.text.split("```python\n")[1].split("```")[0]
    assert run_snippet(snippet, cwd=tmp_path).count("\n") == 10

"""The README: its snippets run, its tables say what the results say, its methods are those of the registry."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from hf_ext.commands.readme import rewritten
from hf_ext.hub_cards import METHODS

SMALL_MODELS = """
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "happy", "neutral", "expression"]
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("text")
BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained("text")
config = ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)
ResNetForImageClassification(config).save_pretrained("vision")
ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("vision")
"""
RESULTS = Path(__file__).parents[1] / "examples" / "results"
README = Path(__file__).parents[1] / "README.md"


def test_tables_are_made_from_the_results() -> None:
    text = README.read_text()
    assert rewritten(text, RESULTS, "examples/results") == text


def test_all_results_are_shown() -> None:
    shown = re.findall(r"<!-- results: ([\w-]+) -->\n\|", README.read_text())
    assert sorted(shown) == sorted(folder.name for folder in RESULTS.glob("*") if folder.is_dir())


def test_methods_are_listed() -> None:
    rows = [line for line in README.read_text().splitlines() if line.startswith("| ") and "](http" in line]
    assert len(rows) == len(METHODS)
    for method, row in zip(METHODS.values(), rows, strict=True):
        assert row.startswith(f"| {method.title} | {method.summary} | ") and f"]({method.paper})" in row


@pytest.mark.slow
@pytest.mark.parametrize("family", ["fer", "rd"])
def test_snippets_of_a_model_family(family: str, tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """With small models in the place of those of the Hub."""
    run_snippet(SMALL_MODELS, cwd=tmp_path)
    for name in ("facebook/convnextv2-tiny-22k-224", "microsoft/resnet-18", "facebook/dinov2-base"):
        shutil.copytree(tmp_path / "vision", tmp_path / name)
    shutil.copytree(tmp_path / "text", tmp_path / "openai" / "clip-vit-base-patch16")
    for number, name in enumerate(["happy", "neutral"]):
        for split in ("train", "test"):
            for folder in ("my_faces", "my_images"):
                place = tmp_path / folder / split / name
                place.mkdir(parents=True)
                for image in range(4):
                    Image.new("L", (20, 20), 100 * number + image).save(place / f"{image}.png")
    models = README.parent / "hf_ext" / "models"
    for snippet in re.findall(r"```python\n(.*?)```", (models / family / "README.md").read_text(), flags=re.DOTALL):
        run_snippet(snippet, cwd=tmp_path)
    published, student = {"fer": ("my_matcher", "my_matcher"), "rd": ("my_rd", "my_rd/student")}[family]
    assert (tmp_path / published / "README.md").is_file()
    found = pipeline("image-classification", model=str(tmp_path / student))(Image.new("RGB", (20, 20)))
    assert {row["label"] for row in found} == {"happy", "neutral"}


@pytest.mark.slow
def test_snippets(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """In the order they stand there, in an empty folder."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 3
    for snippet in snippets:
        run_snippet(snippet, cwd=tmp_path)
    assert (tmp_path / "my_lora_for_task_2" / "adapter_model.safetensors").is_file()

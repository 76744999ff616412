"""Cards: metadata that the Hub reads back, text that cannot break anything, pictures."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.hub_cards import METHODS, MethodCard, Result, create_card, plot_losses, plot_results, plot_routing

RESULTS = [
    Result("LoRA r=16", "accuracy", 0.5, 0.01, 3),
    Result("MoLA-Grad", "accuracy", 0.75, 0.02, 3, is_method=True),
]


def _card(**facts: object) -> MethodCard:
    return MethodCard(**{"method": "mola", "model_name": "my-model", "results": RESULTS, **facts})  # type: ignore[arg-type]


def test_metadata_is_read_back(tmp_path: Path) -> None:
    _card(base_model="me/base", dataset="me/data", license="mit").save(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets, data.license, data.library_name) == ("me/base", ["me/data"], "mit", "peft")
    assert set(METHODS["mola"].tags) <= set(data.tags)
    (result,) = data.eval_results  # the baseline is in the table, not in the metadata
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.75, "me/data")


def test_body_says_what_it_should() -> None:
    text = _card(usage="import hf_ext", command="hf-ext demo", plots=[("a.png", "a plot")]).render()
    assert "not the MoLA of Gao et al." in text.split("\n\n")[2]
    for part in (
        "| LoRA r=16 |",
        "0.750 ± 0.020",
        "```python\nimport hf_ext",
        "![a plot](a.png)",
        "@inproceedings{zhou2024",
    ):
        assert part in text
    assert "None" not in text


hostile = st.text(
    alphabet=st.one_of(
        st.sampled_from("-:|#`{}%\n\"'\\<>[]~*_ !&"), st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])
    ),
    max_size=40,
).map(lambda text: f"x{text}")


@settings(max_examples=50, deadline=None)
@given(name=hostile, dataset=hostile, system=hostile, key=hostile, value=hostile)
def test_no_text_breaks_header_table_or_template(name: str, dataset: str, system: str, key: str, value: str) -> None:
    card = MethodCard(
        method="mola",
        model_name=name,
        dataset=dataset,
        dataset_description=value,
        hyper_parameters={key: value},
        limitations=value,
        usage=value,
        results=[Result(system, "accuracy", 0.5, is_method=True)],
    )
    text = card.render()
    read = ModelCard(text)
    assert read.data.model_name == name
    assert read.data.eval_results[0].dataset_name == dataset
    rows = [line for line in read.text.splitlines() if line.startswith("| **")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 5
    headings = [line for line in read.text.splitlines() if line.startswith("## ")]
    assert headings == ["## Method", "## Usage", "## Results", "## Training", "## Limitations", "## Citation"]


def test_create_card_reads_the_folder(tmp_path: Path) -> None:
    config = {
        "base_model_name_or_path": "me/base",
        "r": 4,
        "target_modules": ["q", "v"],
        "bias": None,
        "peft_type": "MOLA",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    card = create_card(tmp_path, results=RESULTS)
    assert card.base_model == "me/base"
    assert card.hyper_parameters["r"] == 4
    assert "bias" not in card.hyper_parameters
    assert "| target\\_modules | q, v |" in (tmp_path / "README.md").read_text()


def test_a_path_of_this_machine_is_no_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/model"}))
    assert create_card(tmp_path).base_model is None


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method: found 'nope', allowed are"):
        MethodCard(method="nope", model_name="x")


def _png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_plots_are_pictures(tmp_path: Path) -> None:
    plot_results(RESULTS, tmp_path / "results.png")
    plot_losses(
        [{"loss": 2.0, "twd_loss": 1.0, "step": 1}, {"loss": 1.0, "step": 2}, {"eval_loss": 1, "step": 2}],
        tmp_path / "losses.png",
    )
    plot_routing(np.full((4, 3), 1 / 3), tmp_path / "routing.png", ["a", "b", "c", "d"])
    for name, width in {"results": 1050, "losses": 1050, "routing": 540}.items():
        assert _png_size(tmp_path / f"{name}.png")[0] == width

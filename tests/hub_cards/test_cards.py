"""Cards: metadata that the Hub reads back, text that cannot break anything, pictures."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_ext.hub_cards import (
    METHODS,
    MethodCard,
    Result,
    create_card,
    plot_groups,
    plot_losses,
    plot_partition,
    plot_prior,
    plot_reliability,
    plot_results,
    plot_routing,
)
from hf_ext.hub_cards.text import visible

RESULTS = [
    Result("LoRA r=16", "accuracy", 0.5, 0.01, 3),
    Result("MoLA-Grad", "accuracy", 0.75, 0.02, 3, is_method=True),
]
TASK = "image-classification"


def _card(**facts: object) -> MethodCard:
    return MethodCard(**{"method": "mola", "model_name": "my-model", "task": TASK, "results": RESULTS, **facts})  # type: ignore[arg-type]


def test_metadata_is_read_back(tmp_path: Path) -> None:
    _card(base_model="me/base", dataset="me/data", license="mit", library_name="peft").save(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets, data.license, data.library_name) == ("me/base", ["me/data"], "mit", "peft")
    assert set(METHODS["mola"].tags) <= set(data.tags)
    (result,) = data.eval_results  # the baseline is in the table, not in the metadata
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.75, "me/data")
    assert result.metric_name == "accuracy (mean of 3 seeds, std 0.02)"


def test_the_hub_gets_no_results_of_an_unknown_task() -> None:
    text = _card(task=None).render()
    assert ModelCard(text).data.eval_results is None and "0.750" in text


def test_two_systems_of_a_method_are_told_apart() -> None:
    results = [Result(system, "accuracy", 0.5, is_method=True) for system in ("Grad", "Router")]
    read = ModelCard(_card(results=results).render()).data.eval_results
    assert [result.metric_name for result in read] == ["accuracy (Grad)", "accuracy (Router)"]


def test_weights_of_others_are_told_apart() -> None:
    results = [
        Result("Grad", "accuracy", 0.5, is_method=True, step=4),
        Result("Router", "accuracy", 0.25, is_method=True, published=False),
    ]
    card = ModelCard(_card(results=results).render())
    assert [result.metric_name for result in card.data.eval_results] == ["accuracy (at step 4)"]
    assert "| **Router** | accuracy | 0.250 |" in card.text and "0.500 (step 4)" in card.text
    assert "(step N)" in card.text and "(step N)" not in _card().render()


def test_a_result_is_a_number() -> None:
    with pytest.raises(ValueError, match="mean: found 'much', allowed is a number"):
        Result("MoLA", "accuracy", "much")  # type: ignore[arg-type]


def test_optional_facts_are_shown() -> None:
    text = _card(environment={"hardware": "2 CPU cores"}, tags=["digits", "mola"]).render()
    assert "| hardware | 2 CPU cores |" in text
    assert ModelCard(text).data.tags == [*METHODS["mola"].tags, "digits"]
    assert "standard deviation" in text
    assert "standard deviation" not in _card(results=[Result("MoLA", "accuracy", 0.5)]).render()


def test_body_says_what_it_should() -> None:
    text = _card(usage="import hf_ext", command="hf-ext demo", plots=[("a.png", "a plot")]).render()
    assert "not the MoLA of Gao et al." in text.split("\n\n")[2]
    for part in (
        "| LoRA r=16 |",
        "0.750 ± 0.020",
        "```python\nimport hf_ext",
        "![a plot](a.png)\n\n*a plot*\n",
        "@inproceedings{zhou2024",
    ):
        assert part in text
    assert "None" not in text


def _full_card(name: str, system: str, text: str) -> MethodCard:
    return MethodCard(
        method="mola",
        model_name=name,
        task=TASK,
        dataset=name,
        dataset_description=text,
        hyper_parameters={system: [text], f"{system} 2": 0.5},
        environment={system: text},
        results=[
            Result(system, text, 0.5, 0.1, 3, is_method=True),
            Result("LoRA", "accuracy", 0.4),
            Result(system, text, 0.6, group=text),
            Result(f"{system} 2", f"{text} 2", 0.6, group=f"{text} 2"),
        ],
        data={name: {"rows": 3, "fingerprint": text}},
        log_history=[{"loss": 1.0, f"{text}_loss": 2.0, "step": 1}, {"loss": 0.5, "step": 2}],
        loss_terms=[f"{text}_loss"],
        base_folder=name,
        place=name,
        example=text,
        plots=[("a.png", text)],
        limitations=text,
        usage=text,
        command=text,
    )


def _structure(card: MethodCard) -> list[str]:
    """The kinds of the elements that a markdown parser sees, in order; runs of text are left out."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(ModelCard(card.render()).text)
    parts = [part for token in tokens for part in (token.children or [token])]
    return [part.type for part in parts if part.type != "text"]


MARKUP = "-+=.)(:;|#`{}%\n\r\t\"'\\<>[]~*_ !&$aA1"
hostile = st.text(
    st.one_of(st.sampled_from(MARKUP), st.characters(codec="utf-8", exclude_characters="\x85")),
    min_size=1,
    max_size=20,
).filter(str.strip)


@settings(max_examples=100, deadline=None)
@example(name="a\n---\nb", system="a | b", text="```\n## x")
@example(name="---", system="\x00\x1b", text="1. item")
@example(name="{{ 7 * 7 }}", system="**", text="<script>")
@given(name=hostile, system=hostile, text=hostile)
def test_no_text_breaks_header_body_or_template(name: str, system: str, text: str) -> None:
    card = _full_card(name, system, text)
    data = ModelCard(card.render()).data
    assert data.model_name == visible(name)
    read = data.eval_results[0]
    assert (read.dataset_name, read.metric_type) == (visible(name), visible(text))
    assert _structure(card) == _structure(_full_card("name", "system", "text"))


def test_what_no_file_can_hold_is_replaced(tmp_path: Path) -> None:
    _card(model_name="a\x85b", dataset_description="\ud800").save(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "a b"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_names_of_files_and_commands_are_quoted() -> None:
    text = _card(plots=[("a b).png", "x")], command="a `b`").render()
    assert "![x](a%20b%29.png)" in text
    assert "Made by `` a `b` ``." in text


def test_create_card_reads_the_folder(tmp_path: Path) -> None:
    config = {
        "base_model_name_or_path": "me/base",
        "r": 4,
        "target_modules": ["q", "v"],
        "bias": None,
        "routing": "router",
        "twd_weight": 0,
        "task_type": "SEQ_CLS",
        "peft_type": "MOLA",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    card = create_card(tmp_path, results=RESULTS)
    assert card.base_model == "me/base"
    assert card.hyper_parameters["r"] == 4
    assert "bias" not in card.hyper_parameters
    assert card.hyper_parameters["twd_weight"] == 0
    assert card.task == "text-classification"
    text = (tmp_path / "README.md").read_text()
    assert "| target_modules | q, v |" in text
    code = text.split("```python\n")[1].split("```")[0]
    assert code.startswith("import hf_ext")
    assert 'AutoModelForSequenceClassification.from_pretrained("me/base")' in code
    assert f'PeftModel.from_pretrained(base, "./{tmp_path.name}")' in code
    compile(code, "usage", "exec")


def test_saved_results_are_found(tmp_path: Path) -> None:
    create_card(tmp_path, "mola", results=RESULTS)
    assert create_card(tmp_path).results == RESULTS


@pytest.mark.parametrize("path", ["/home/me/model", "../model", "./model", "base_model"])
def test_a_path_of_this_machine_is_no_base_model(tmp_path: Path, path: str) -> None:
    (tmp_path / "base_model").mkdir()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": path, "peft_type": "MOLA"}))
    assert create_card(tmp_path).base_model is None
    assert path not in (tmp_path / "README.md").read_text()


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
        [{"loss": 2.0, "domain_loss/a": 1.0, "step": 1}, {"loss": 1.0, "step": 2}, {"eval_loss": 1, "step": 2}],
        tmp_path / "losses.png",
        terms=["domain_loss/a"],
    )
    plot_routing(np.full((4, 3), 1 / 3), tmp_path / "routing.png", ["a", "b", "c", "d"])
    plot_partition(np.eye(4, 3, dtype=int), tmp_path / "partition.png", classes=["a", "b", "c"])
    plot_partition(np.zeros((1000, 100), dtype=int), tmp_path / "large.png")
    plot_groups({"ndcg@10": {"head": 0.2, "tail": 0.1}, "auc": {"head": 0.9, "tail": "nan"}}, tmp_path / "groups.png")
    epochs = {"epoch": [41, 42], "prior": [0.3, None], "homophily": ["nan", 0.9], "interval": [0.2, 0.4]}
    plot_prior(epochs | {"true_prior": 0.25}, tmp_path / "prior.png")
    plot_reliability({"predicted": [0.1, 0.9], "observed": [0.0, 0.8], "rows": [5, 5]}, tmp_path / "reliability.png")
    sizes = {
        "prior": (1050, 750),
        "reliability": (675, 600),
        "groups": (750, 480),
        "results": (1050, 285),
        "losses": (1050, 525),
        "routing": (540, 480),
        "partition": (675, 405),
    }
    for name, size in {**sizes, "large": (2400, 2400)}.items():
        assert _png_size(tmp_path / f"{name}.png") == size


def test_names_in_pictures_are_no_formulas(tmp_path: Path) -> None:
    plot_results([Result("$\\bad{$", "$\\bad{$", 0.5)], tmp_path / "results.png")
    plot_routing([[1.0]], tmp_path / "routing.png", ["$\\bad{$"])
    plot_partition([[1]], tmp_path / "partition.png", ["$\\bad{$"], ["$\\bad{$"])
    plot_groups({"$\\bad{$": {"$\\bad{$": 0.5}}, tmp_path / "groups.png")
    term = "domain_loss/$\\bad{$"
    plot_losses([{"loss": 1.0, term: 1.0, "step": 1}], tmp_path / "losses.png", terms=[term])


def test_plots_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results: found the metrics \\[\\]"):
        plot_results([], tmp_path / "x.png")
    with pytest.raises(ValueError, match="results: found the metrics \\['accuracy', 'loss'\\]"):
        plot_results([*RESULTS, Result("LoRA", "loss", 1.0)], tmp_path / "x.png")
    with pytest.raises(ValueError, match="log_history: found 1 entries without 'loss'"):
        plot_losses([{"eval_loss": 1.0, "step": 1}], tmp_path / "x.png")
    with pytest.raises(ValueError, match="table: found the shape"):
        plot_routing([1.0], tmp_path / "x.png")
    with pytest.raises(ValueError, match="tasks: found 1 names, allowed are 2"):
        plot_routing(np.eye(2), tmp_path / "x.png", ["a"])
    with pytest.raises(ValueError, match="groups: found no metrics"):
        plot_groups({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"epochs: found \{'epoch': 1, 'prior': 2, 'homophily': 1\}, allowed"):
        plot_prior({"epoch": [1], "prior": [0.1, 0.2], "homophily": [0.5]}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="curve: found 0 and 0 bins"):
        plot_reliability({"predicted": [], "observed": []}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="counts: found the shape"):
        plot_partition([1, 2], tmp_path / "x.png")
    with pytest.raises(ValueError, match="classes: found 1 names, allowed are 2"):
        plot_partition(np.eye(2, dtype=int), tmp_path / "x.png", classes=["a"])

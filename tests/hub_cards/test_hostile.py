"""Text that nobody sees, paths at any depth, names in place of lists: what reaches cards and pictures of them."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure

from hf_ext.hub_cards import (
    CardCallback,
    MethodCard,
    Result,
    create_card,
    plot_gravity,
    plot_losses,
    plot_similarities,
)
from hf_ext.hub_cards.text import visible

_CODES = (
    *(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"),
    *(0xAD, 0x034F, 0x061C, 0x115F, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070)),
    *(0x3164, 0xFEFF, 0xFFA0, 0xFFF9, 0xD800, 0xDFFF, 0xE0001, 0xE0041, 0xE0FFF),
)
#: every character that turns, hides or breaks text
UNSEEN = "".join(map(chr, _CODES))
HOSTILE = f"a{UNSEEN}b\x1b[31mred\x1b[0m\x1b]0;title\x07"


def _unseen(text: str) -> set[str]:
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {char for char in text if char not in "\n\t" and (char in UNSEEN or unicodedata.category(char) in kinds)}


def _card(text: str) -> MethodCard:
    named = dict.fromkeys(("model_name", "note", "dataset", "dataset_description", "limitations", "command"), text)
    return MethodCard(
        method="mola",
        **named,
        base_model="me/base",
        license=text,
        library_name=text,
        tags=[text],
        task="image-classification",
        results=[Result(text, text, 0.5, is_method=True), Result(text, text, 0.5, group=text)],
        hyper_parameters={text: [text, {text: text}]},
        environment={text: text},
        data={text: {"rows": 1, "fingerprint": text, "kind": text, "columns": [text]}},
        log_history=[{"loss": 1.0, text: 1.0}, {"loss": 0.5, text: 0.5}],
        loss_terms=[text],
        plots=[(text, text)],
        example=f"print(1)  # {text}",
    )


def test_nothing_that_nobody_sees_is_in_a_card() -> None:
    written = _card(HOSTILE).content().decode()
    assert not _unseen(written) and "[31m" not in written and ";title" not in written
    data = ModelCard(written).data
    assert not _unseen(json.dumps(data.to_dict(), ensure_ascii=False)) and data.tags[-1].startswith("a")
    assert written.replace("\ufffd", "") == written  # there was something to see


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[1;31mb\x1b[0mc", "abc"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("invoice\u202egnp.exe", "invoicegnp.exe"),
        ("a\u2028b\x85c\rd\r\ne", "a b c d\ne"),
        ("\u200b\u200b", "\ufffd"),
        ("", ""),
        ("naïve Ångström 日本 🙂", "naïve Ångström 日本 🙂"),
    ],
)
def test_what_is_seen_of_a_text(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_nothing_that_nobody_sees_is_in_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []

    def saved(self: Figure, *args: Any, **kwargs: Any) -> None:
        self.canvas.draw()
        for axes in self.axes:
            legend = axes.get_legend()
            texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
            labels.extend(text.get_text() for text in [*texts, *(legend.get_texts() if legend else [])])

    monkeypatch.setattr(Figure, "savefig", saved)
    table = {"tasks": [HOSTILE], "weights": [[1.0]]}
    rows = [Result(f"{HOSTILE}{number}", HOSTILE, 0.5, is_method=number == 1) for number in range(3)]
    plot_gravity({"groups": [HOSTILE], "gravity": [1.0], "dropped": [HOSTILE]}, tmp_path / "gravity.png")
    plot_similarities({"classes": [HOSTILE], "similarities": [[1.0]]}, tmp_path / "similar.png")
    plot_losses([{"loss": 1.0, HOSTILE: 2.0, "step": 1}], tmp_path / "losses.png", terms=[HOSTILE])
    from hf_ext.hub_cards import plot_results, plot_routing

    plot_results(rows, tmp_path / "results.png")
    plot_routing(table["weights"], tmp_path / "routing.png", table["tasks"])  # type: ignore[arg-type]
    assert sum(label.startswith("a") for label in labels) >= 8 and not any(map(_unseen, labels))


# ------------------------------------------------------------------------------------------------ paths
def test_paths_lose_their_folders_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    home = {
        "list": ["/home/me/a", ["~/private/b", ("../private/c",)]],
        "mapping": {"/home/me/key": {"inner": "/home/me/d"}},
        "set": {"/home/me/e"},
        "paths": [Path("/home/me/f"), Path("private/data")],
        "windows": ["C:\\Users\\me\\g", "\\\\server\\me\\h", "file:///home/me/i"],
        "names": ["me/text", "1/2", 0.5],
    }
    run = {
        "hyper_parameters": home,
        "environment": {"logs": home},
        "data": {"train": {"rows": 1, "kind": "/home/me/k"}},
    }
    out = tmp_path / "out"
    card = create_card(out, "mola", run={**run, "log_history": []}, base_options=home)
    assert card.hyper_parameters["list"] == ["a", ["b", ["c"]]]
    assert card.hyper_parameters["windows"] == ["g", "h", "i"]
    assert card.hyper_parameters["names"] == ["me/text", "1/2", 0.5]
    for name in ("README.md", "hf_ext_card.json"):
        text = (out / name).read_text()
        for part in ("/me/", "home", "private", "Users", "server", str(tmp_path)):
            assert part not in text.replace("me/text", ""), (name, part)


# ------------------------------------------------------------------------------------------------ lists
def test_one_name_is_a_list_of_one(tmp_path: Path) -> None:
    card = create_card(tmp_path, "mola", tags="digits", further_methods="disam", loss_terms="twd_loss")
    assert (card.tags, card.further_methods, card.loss_terms) == (["digits"], ["disam"], ["twd_loss"])
    again = create_card(tmp_path)
    assert (again.tags, again.further_methods, again.loss_terms) == (["digits"], ["disam"], ["twd_loss"])
    assert ModelCard.load(tmp_path / "README.md").data.tags.count("digits") == 1
    assert MethodCard("mola", "x", tags="evil", files="preprocessor_config.json").metadata().tags[-1] == "evil"
    callback = CardCallback("mola", "disam")
    callback.add_loss_terms("twd_loss")
    callback.add_fact("x", 1, "eval_loss")
    assert callback.further_methods == ("disam",) and callback._facts["loss_terms"] == ["twd_loss"]
    assert callback._facts["hidden"] == ["eval_loss"]
    assert create_card(tmp_path, tags=None).tags == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tags", [1]),
        ("tags", 5),
        ("further_methods", [None]),
        ("loss_terms", b"loss"),
        ("plots", "losses.png"),
        ("plots", ["losses.png"]),
        ("plots", [("a.png", "b", "c")]),
        ("plots", [("/home/me/x.png", "x")]),
        ("plots", [("../x.png", "x")]),
        ("plots", [("C:\\x.png", "x")]),
        ("results", Result("MoLA", "accuracy", 0.5)),
        ("results", [{"mean": 1}]),
        ("log_history", "abc"),
        ("log_history", ["abc"]),
        ("hyper_parameters", [1]),
        ("environment", "fast"),
        ("data", ["train"]),
        ("facts", 3),
    ],
)
@pytest.mark.parametrize("how", ["said", "run", "card"])
def test_what_is_no_list_or_mapping_is_refused(name: str, value: Any, how: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found .*, allowed (is|are) "):
        if how == "card":
            MethodCard("mola", "x", **{name: value})
        else:
            create_card(tmp_path, "mola", **({name: value} if how == "said" else {"run": {name: value}}))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ content
def test_metrics_of_several_systems_have_a_table_each() -> None:
    rows = [
        Result("teacher", "accuracy", 0.75),
        Result("RD", "accuracy", 0.5, is_method=True),
        Result("teacher", "weights", 1_234_567),
        Result("RD", "weights", 12_345, 0.0, 2, is_method=True),
        Result("RD", "loss", 1.5, is_method=True),
    ]
    text = MethodCard("rd", "x", results=rows).render()
    head = "| system | metric | value | seeds |\n|---|---|---|---|\n"
    for table in (
        "| teacher | accuracy | 0.750 | 1 |\n| **RD** | accuracy | 0.500 | 1 |\n\n",
        "| teacher | weights | 1,234,567 | 1 |\n| **RD** | weights | 12,345 ± 0.000 | 2 |\n\n",
        "| **RD** | loss | 1.500 | 1 |\n\n",
    ):
        assert head + table in text
    alone = [Result("RD", "accuracy", 0.5), Result("RD", "loss", 1.5)]
    assert MethodCard("rd", "x", results=alone).render().count("| system | metric") == 1


def test_of_data_is_said_what_is_known() -> None:
    known = {"train": {"rows": 3, "kind": "datasets.Dataset", "columns": ["text", "labels"], "fingerprint": "f"}}
    text = MethodCard("mola", "x", data=known).render()
    assert "Data: " not in text
    assert "| split | rows | kind | columns | fingerprint |\n|---|---|---|---|---|\n" in text
    assert "| train | 3 | datasets.Dataset | text, labels | f |" in text
    assert "Data: digits." in MethodCard("mola", "x", dataset="digits").render()
    assert "| split | rows | fingerprint |" in MethodCard("mola", "x", data={"train": {"rows": 3}}).render()


def test_one_point_is_no_curve(tmp_path: Path) -> None:
    card = create_card(
        tmp_path, "mola", log_history=[{"loss": 1.0, "twd_loss": 0.5, "step": 1}], loss_terms="twd_loss"
    )
    assert card.plots == [] and "| twd_loss | 0.5 | 0.5 |" in (tmp_path / "README.md").read_text()

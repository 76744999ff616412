"""Whose a file in a card's folder is: ours are known by their content, all others stay."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_ext.hub_cards import MethodCard, Result, create_card
from hf_ext.hub_cards.create import card_at, is_handwritten
from hf_ext.hub_cards.saved import FACTS_FILE, SavedFacts

HISTORY = [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}]
ROWS = [Result(name, "accuracy", 0.5, is_method=name == "MoLA") for name in ("LoRA", "Poly", "MoLA")]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "image_size": 8}


def _adapter(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "MOLA", "r": 4}))
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What peft, Trainer, and both leave."""
    folder = tmp_path_factory.mktemp("forms")
    model: Any = ViTForImageClassification(ViTConfig(**SIZES, patch_size=4, num_channels=1))
    model.save_pretrained(folder / "base")
    pixels = torch.rand(4, 1, 8, 8).numpy()
    rows = Dataset.from_dict({"pixel_values": pixels, "labels": [0, 1, 0, 1]})

    def leave(name: str, model: Any, **options: Any) -> None:
        args = TrainingArguments(
            str(folder / name), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, **options
        )
        trainer = Trainer(
            model, args, train_dataset=rows, eval_dataset=rows, compute_metrics=lambda _: {"accuracy": 0.5}
        )
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
        trainer.create_model_card()

    leave("trainer", ViTForImageClassification.from_pretrained(folder / "base"))
    leave("sgd", ViTForImageClassification.from_pretrained(folder / "base"), optim="sgd", eval_strategy="epoch")
    base = ViTForImageClassification.from_pretrained(folder / "base")
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "query"], r=2))
    adapted.save_pretrained(folder / "peft")
    leave("both", adapted)
    return {name: folder / name for name in ("trainer", "sgd", "peft", "both")}


def _copied(form: Path, to: Path) -> Path:
    """The files of a form's folder that say what it is, in one of the same name."""
    folder = to / form.name
    folder.mkdir()
    for name in ("README.md", "adapter_config.json", "config.json"):
        if (form / name).is_file():
            (folder / name).write_bytes((form / name).read_bytes())
    return folder


FORMS = pytest.mark.parametrize("kind", ["trainer", "sgd", "peft", "both"])


@FORMS
def test_an_unfilled_form_is_nobodys(forms: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = _copied(forms[kind], tmp_path)
    assert not is_handwritten(folder)
    create_card(folder, "disam")
    assert "DISAM" in (folder / "README.md").read_text()


#: what somebody does to a form
COMPLETED: dict[str, Callable[[str], str]] = {
    "a sentence at the end": lambda text: f"{text}\nMy words.\n",
    "a line of versions": lambda text: f"{text.rstrip()}\n- Python 3.11, on my own machine\n",
    "words in place of a gap": lambda text: text.replace("ore information needed", "y words", 1).replace(
        "[More Information Needed]", "My words", 1
    ),
    "a title": lambda text: text.replace("\n# ", "\n# My ", 1),
    "a section": lambda text: text.replace("\n## ", "\n## My section\n\nWords\n\n## ", 1),
    "a language": lambda text: text.replace("---\n", "---\nlanguage: de\n", 1),
    "a name for the base": lambda text: text.replace("---\n", "---\nbase_model_relation: adapter\n", 1),
    "another library": lambda text: text.replace("library_name: ", "library_name: my-", 1),
    "a broken header": lambda text: text.replace("---\n", "---\n: [\n", 1),
}


@FORMS
@pytest.mark.parametrize("how", COMPLETED)
def test_a_completed_form_is_somebodys(forms: dict[str, Path], kind: str, how: str, tmp_path: Path) -> None:
    folder = _copied(forms[kind], tmp_path)
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(COMPLETED[how](text))
    before = _content(folder)
    assert COMPLETED[how](text) != text
    with pytest.raises(ValueError, match=r"found '.*README.md' with text of somebody's"):
        create_card(folder, "disam")
    assert _content(folder) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- seed: 42\n", "- seed: 42, the answer\n"),
        ("- seed: 42\n", "- seed: 42\n- patience: my own\n"),
        ("- Accuracy: 0.5\n", "- Accuracy: 0.5, which is poor\n"),
        ("- Accuracy: 0.5\n", ""),  # though the header still says so
        ("the None dataset", "the None dataset, cleaned by hand"),
        ("| Step |", "| Step (mine) |"),
        ("- name: ", "- name: my-"),
        ("metrics:\n", "metrics:\n- wer\n"),
    ],
)
def test_a_form_with_other_values_is_somebodys(forms: dict[str, Path], old: str, new: str, tmp_path: Path) -> None:
    folder = _copied(forms["sgd"], tmp_path)
    text = (folder / "README.md").read_text()
    assert old in text
    (folder / "README.md").write_text(text.replace(old, new, 1))
    assert is_handwritten(folder)


@FORMS
def test_what_a_header_adds_to_a_form_is_kept(forms: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = _copied(forms[kind], tmp_path)
    text = (folder / "README.md").read_text()
    text = text.replace("---\n", "---\nlicense: cc-by-4.0\n", 1).replace("tags:\n", "tags:\n- my-tag\n", 1)
    (folder / "README.md").write_text(text)
    create_card(folder, "disam")
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "cc-by-4.0" and "my-tag" in data.tags and "generated_from_trainer" not in data.tags
    assert not any(tag.startswith("base_model:") for tag in data.tags)
    assert create_card(folder).license == "cc-by-4.0"


@pytest.mark.parametrize("line", ["license: mit", "tags:\n- mine", "language: de"])
def test_metadata_that_somebody_adds_to_our_card_stay(line: str, tmp_path: Path) -> None:
    create_card(_adapter(tmp_path))
    text = (tmp_path / "README.md").read_text().replace("---\n", f"---\n{line}\n", 1)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"README\.md"):
        create_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_words_of_a_form_make_no_form(tmp_path: Path) -> None:
    words = "# Mine\n\nThis model card has been generated automatically according to the information I had.\n"
    (_adapter(tmp_path) / "README.md").write_text(words)
    with pytest.raises(ValueError, match=r"README\.md"):
        create_card(tmp_path)
    with pytest.raises(ValueError, match=r"README\.md"):
        MethodCard("mola", "x").save(tmp_path)
    assert (tmp_path / "README.md").read_text() == words
    MethodCard("mola", "x").save(tmp_path, overwrite=True)
    MethodCard("mola", "x").save(tmp_path)  # the same again is no harm
    assert (tmp_path / "README.md").read_text() != words


@pytest.mark.parametrize("place", ["elsewhere", "nowhere"])
def test_a_link_is_not_ours(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    create_card(_adapter(folder), run={"log_history": HISTORY})
    for name in ("README.md", "losses.png"):
        if place == "elsewhere":  # with the very content
            (tmp_path / f"elsewhere-{name}").write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / f"{place}-{name}")
    with pytest.raises(ValueError, match=r"README\.md"):
        create_card(folder)
    with pytest.warns(UserWarning, match=r"losses\.png is not as create_card left it: it is kept"):
        create_card(folder, overwrite=True, license="mit")
    assert (folder / "losses.png").is_symlink() and not (folder / "README.md").is_symlink()
    assert "license: mit" not in "".join(path.read_text("latin-1") for path in tmp_path.glob("elsewhere-*"))
    assert "nowhere-README.md" not in os.listdir(tmp_path)


def test_a_picture_of_somebody_elses_stays(tmp_path: Path) -> None:
    (_adapter(tmp_path) / "losses.png").write_bytes(b"mine")
    with pytest.warns(UserWarning, match=r"losses\.png is not as create_card left it: it is kept, and not shown"):
        card = create_card(tmp_path, run={"log_history": HISTORY, "results": ROWS})
    assert (tmp_path / "losses.png").read_bytes() == b"mine"
    assert [file for file, _ in card.plots] == ["results.png"]
    assert b"losses.png" not in card_at(tmp_path, "me/x")["README.md"]
    (tmp_path / "results.png").write_bytes(b"drawn better")
    with pytest.warns(UserWarning) as said:
        card = create_card(tmp_path, plots=[("losses.png", "my own")], overwrite=True)
    assert {str(one.message).split(" ")[0] for one in said} == {
        str(tmp_path / f) for f in ("losses.png", "results.png")
    }
    assert card.plots == [("losses.png", "my own")] and (tmp_path / "results.png").read_bytes() == b"drawn better"
    assert b"![my own](losses.png)" in card_at(tmp_path, "me/x")["README.md"]


def test_pictures_of_ours_are_drawn_anew(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    create_card(_adapter(tmp_path), run={"log_history": HISTORY})
    before = (tmp_path / "losses.png").read_bytes()
    create_card(tmp_path, run={"log_history": [*HISTORY, {"loss": 9.0, "step": 3}]})
    assert (tmp_path / "losses.png").read_bytes() != before
    (tmp_path / FACTS_FILE).unlink()  # the same picture is no loss, whoever drew it
    create_card(tmp_path, "mola", run={"log_history": [*HISTORY, {"loss": 9.0, "step": 3}]}, overwrite=True)
    assert not [one for one in recwarn if "create_card left it" in str(one.message)]


def test_facts_of_an_earlier_version_know_their_card(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path), license="mit")
    values = json.loads((tmp_path / FACTS_FILE).read_text())
    values["sha256"] = values.pop("written")["README.md"][0]
    (tmp_path / FACTS_FILE).write_text(json.dumps(values))
    assert create_card(tmp_path).license == "mit"


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_killed_at_any_write_the_card_is_still_ours(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, written = os.replace, 0
    for last in range(20):
        folder = tmp_path / str(last)
        folder.mkdir()
        _adapter(folder)
        if again:
            create_card(folder, run={"log_history": HISTORY, "results": ROWS})
        with monkeypatch.context() as patch:
            count = iter(range(100))

            def dying(*args: Any, count: Any = count, last: int = last) -> None:
                if next(count) == last:
                    raise KeyboardInterrupt
                replace(*args)

            patch.setattr("hf_ext._files.os.replace", dying)
            more = {
                "log_history": [{"loss": 7.0, "step": 1}, *HISTORY],
                "results": [*ROWS, Result("X", "accuracy", 1)],
            }
            try:
                create_card(folder, license="mit", run=more)
                written = last
                break
            except KeyboardInterrupt:
                pass
        assert not is_handwritten(folder) and all(not name.startswith(".") for name in os.listdir(folder))
        card = create_card(folder, license="cc0-1.0", run=more)
        assert card.license == "cc0-1.0" and {file for file, _ in card.plots} == {"losses.png", "results.png"}
        assert SavedFacts.read(folder).are_ours(folder, "README.md", "losses.png", "results.png")
    assert written >= 5  # facts, two pictures, the card, facts

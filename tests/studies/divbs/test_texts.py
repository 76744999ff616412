"""The study of cheaper scores: its data, its encoder, what is counted; every system runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.divbs import texts as module
from hf_ext.studies.divbs.encoder import check, classifier, open_parts, prepare, rows_of
from hf_ext.studies.divbs.texts import CHEAPER, TEXTS, WORK, passes_of
from hf_ext.studies.divbs.time import DIVBS, FULL, UNIFORM

Tables = Callable[..., str]


@pytest.fixture
def table(tmp_path: Path) -> Tables:
    """Texts of two tasks; those of the second are of two kinds."""

    def make(other: str = "subj", splits: tuple[str, str] = ("train", "test")) -> str:
        rows = {
            "text": [f"word{row % 40} sign{row} {'goal' if row % 2 else 'bank'}" for row in range(160)],
            "task": ["trec"] * 40 + [other] * 120,
            "label_name": ["positive"] * 40 + [("sports", "business")[row % 2] for row in range(120)],
            "split": [splits[row % 4 == 0] for row in range(160)],
        }
        Dataset.from_dict(rows).to_parquet(tmp_path / "texts.parquet")
        return str(tmp_path / "texts.parquet")

    return make


def _prepared(table: str, folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    prepare(Preparation("texts", seed, table, folder, quick=True))
    return folder


def test_parts_are_of_one_task_and_no_row_is_in_two(table: Tables, tmp_path: Path) -> None:
    folders = [_prepared(table(), tmp_path / str(seed), seed) for seed in range(2)]
    parts, others = (open_parts(folder) for folder in folders)
    assert {name: len(part["labels"]) for name, part in parts.items()} == {"train": 75, "validation": 15, "test": 30}
    ids = torch.cat([part["input_ids"] for part in parts.values()])
    assert ids.shape == (120, 48) and ids[:, 0].unique().tolist() == [2]  # [CLS]
    assert len({tuple(row) for name in ("train", "validation") for row in parts[name]["input_ids"].tolist()}) == 90
    assert (parts["train"]["input_ids"] == 1).sum() == 0 < (parts["test"]["input_ids"] == 1).sum()  # unknown words
    assert torch.equal(parts["test"]["labels"], others["test"]["labels"])
    assert not torch.equal(parts["validation"]["input_ids"], others["validation"]["input_ids"])
    mask = parts["train"]["attention_mask"]
    assert torch.equal(mask, parts["train"]["input_ids"].ne(0).long()) and set(mask.sum(1).tolist()) == {5}
    assert not rows_of(parts["train"])[0]["marked"]


def test_the_encoder_is_the_one_that_has_guessed_words(table: Tables, tmp_path: Path) -> None:
    folder = _prepared(table(), tmp_path / "made")
    models = [classifier(folder, seed) for seed in (0, 0, 1)]
    words = [model.bert.embeddings.word_embeddings.weight for model in models]
    assert torch.equal(words[0], words[2]) and not torch.equal(
        models[0].classifier.weight, models[2].classifier.weight
    )
    assert all(torch.equal(one, other) for one, other in zip(*(m.parameters() for m in models[:2]), strict=True))
    left = torch.load(folder / "encoder.pt", weights_only=True)["encoder"]
    assert torch.equal(words[0], left["embeddings.word_embeddings.weight"])
    assert models[0].config.num_labels == 2


def test_tables_without_the_task_are_refused(table: Tables) -> None:
    check("texts", load(table()))
    with pytest.raises(ValueError, match=r"--data: found the splits \[\] of the task subj in texts, allowed are both"):
        check("texts", load(table(other="sst2")))
    with pytest.raises(ValueError, match=r"found the splits \['train'\]"):
        check("texts", load(table(splits=("train", "train"))))


def test_work_of_an_update() -> None:
    passes = {system.name: passes_of(system) for system in TEXTS.systems}
    assert passes == pytest.approx({FULL: 480, UNIFORM: 48, DIVBS: 48 + 160, CHEAPER: 48 + 80})


def test_every_system_runs(table: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = reproduce(TEXTS, out=tmp_path / "out", data={"texts": table()}, quick=True, seeds=1)
    ((_, systems),) = result.cases.items()
    assert list(systems) == [FULL, UNIFORM, DIVBS, CHEAPER]
    monkeypatch.setattr(module, "TARGET", 0.0)  # which the first look finds reached
    monkeypatch.setattr(module, "LOOKS", 1)
    folder = _prepared(table(), tmp_path / "made")
    for system in TEXTS.systems:
        run = module.Run(TEXTS.cases[0], system, {"learning_rate": 1e-3}, 0, table(), folder, quick=True)
        outcome = module.run(run)
        assert outcome.details == {"updates": 1, WORK: passes_of(system) / 1000}
        assert 0 < outcome.test == outcome.validation
    assert replace(TEXTS, seeds=5).details[0].name == WORK

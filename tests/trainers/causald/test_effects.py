"""The teachers' effect: what it is, where it is kept, and that the teachers are gone."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_ext.data.interactions import NextItems
from hf_ext.functional import front_door_effect
from hf_ext.trainers.causald import effects
from hf_ext.trainers.causald.bank import draw_bank
from hf_ext.trainers.causald.candidates import EFFECT

Make = Callable[..., Any]
BANK = {"causald_front_door": "bank", "causald_bank_size": 10}


@pytest.fixture
def teachers(recommender: Make) -> Callable[[], list[Any]]:
    """With a direct path and without."""
    return lambda: [
        recommender("sasrec", 1, direct_rank=3),
        recommender("deepfm", 2),
        recommender("din", 3, direct_rank=2),
    ]


def _effect(trainer: Any) -> Tensor:
    trainer.train()
    return torch.from_numpy(np.array(trainer.train_dataset.columns[EFFECT]))


@torch.no_grad()
def _scores(model: Any, rows: Any, bank: Any) -> Tensor:
    """`[B, K, C]`, all at once."""
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    outputs = model.eval()(batch["input_ids"], batch["attention_mask"], batch["candidate_ids"])
    if bank is None or outputs.direct_logits is None:
        return outputs.logits[:, None].expand(-1, 1 if bank is None else len(bank.prior), -1)
    direct = model.direct_logits(torch.from_numpy(bank.input_ids), batch["candidate_ids"])
    return (outputs.logits - outputs.direct_logits)[:, None] + direct.transpose(0, 1)


@pytest.mark.parametrize("front_door", ["ensemble", "bank"])
@pytest.mark.parametrize("average", ["probability", "logit"])
@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_it_is_the_front_door_of_all_scores_at_once(
    front_door: str, average: Any, kind: Any, teachers: Any, make_trainer: Make, recommender: Make, monkeypatch: Any
) -> None:
    """Over three teachers, a bank of ten histories in parts of four, and batches of seven rows."""
    monkeypatch.setattr(effects, "_ROWS", 7)
    monkeypatch.setattr(effects, "_HISTORIES", 4)
    monkeypatch.setattr(effects, "_ITEMS", 6)
    weights = [1.0, 0.5, 2.0]
    options = {"causald_average": average, "causald_kind": kind, "causald_teacher_weights": weights}
    options |= {"causald_bank_method": "kmeans", "causald_bank_size": 10, "causald_front_door": front_door}
    trainer = make_trainer(recommender(loss=kind), teachers=teachers(), **options)
    found, rows = _effect(trainer), list(trainer.train_dataset)
    bank = draw_bank(trainer.train_dataset, 10, method="kmeans") if front_door == "bank" else None
    scores = torch.stack([_scores(teacher, rows, bank) for teacher in teachers()])
    prior = None if bank is None else torch.from_numpy(bank.prior)
    expected = front_door_effect(
        scores, teacher_weights=torch.tensor(weights), prior=prior, average=average, kind=kind
    )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert found.std(dim=1).min() > 1e-3  # it prefers something


def test_a_teacher_without_weight_is_as_if_not_there(teachers: Any, make_trainer: Make, tmp_path: Path) -> None:
    whole = _effect(make_trainer(teachers=teachers()[1:], causald_cache_dir=str(tmp_path / "a")))
    options = {"causald_teacher_weights": [0.0, 2.0, 2.0], "causald_cache_dir": str(tmp_path / "b")}
    torch.testing.assert_close(_effect(make_trainer(teachers=teachers(), **options)), whole)


# ------------------------------------------------------------------------------------------------ the file
def _calls(models: list[Any]) -> list[int]:
    asked = [0] * len(models)
    for number, model in enumerate(models):
        model.register_forward_pre_hook(lambda *_, number=number: asked.__setitem__(number, asked[number] + 1))
    return asked


def test_it_is_found_again(teachers: Any, make_trainer: Make, tmp_path: Path) -> None:
    """By whoever has the same rows, candidates and teachers; what is done with it matters not."""
    first = _effect(make_trainer(teachers=teachers()))
    models = teachers()
    asked = _calls(models)
    other = make_trainer(teachers=models, causald_alpha=0.5, causald_temperature=4.0, seed=7, causald_bank_seed=1)
    assert torch.equal(_effect(other), first) and asked == [0, 0, 0]
    other.train()
    assert (tmp_path / "causald_effects" / "effects.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"causald_candidate_seed": 1}, "other candidates"),
        ({"causald_num_candidates": 4}, "other candidates"),
        ({"causald_average": "logit"}, "another average"),
        ({"causald_teacher_weights": [1.0, 2.0, 1.0]}, "other teacher weights"),
        ({**BANK, "causald_bank_size": 9}, "another bank"),
        ({**BANK, "causald_bank_seed": 1}, "another bank"),
        ({"causald_front_door": "ensemble"}, "another bank"),
    ],
)
def test_what_was_made_of_something_else_is_refused(
    options: dict[str, Any], words: str, teachers: Any, make_trainer: Make, tmp_path: Path
) -> None:
    make_trainer(teachers=teachers(), **BANK).train()
    before = (tmp_path / "causald_effects" / "effects.npy").read_bytes()
    with pytest.raises(ValueError, match=f"causald_cache_dir: found effects of {words} in .*causald_effects"):
        make_trainer(teachers=teachers(), **{**BANK, **options}).train()
    assert (tmp_path / "causald_effects" / "effects.npy").read_bytes() == before


def test_other_teachers_and_rows_are_refused(
    teachers: Any, recommender: Make, make_trainer: Make, data: NextItems
) -> None:
    make_trainer(teachers=teachers()).train()
    with torch.no_grad():
        (changed := teachers())[1].scorer.item_bias.weight[3] += 1e-3
    for others in (
        changed,
        teachers()[:2],
        [*teachers()[:2], recommender("din", 3, direct_rank=2, din_normalise=False)],
    ):
        with pytest.raises(ValueError, match="found effects of other teachers"):
            make_trainer(teachers=others).train()
    rows = [{**row, "labels": row["labels"] % 20 + 1} for row in data]
    with pytest.raises(ValueError, match="found effects of other training rows in"):
        make_trainer(teachers=teachers(), train_dataset=rows).train()


def test_what_is_not_whole_is_not_taken(
    teachers: Any, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "causald_effects"
    whole = _effect(make_trainer(teachers=teachers()))
    content = (folder / "effects.npy").read_bytes()
    for broken in (content[:-4], content[:20], b"", None):
        (folder / "effects.npy").unlink()
        if broken is not None:
            (folder / "effects.npy").write_bytes(broken)
        assert torch.equal(_effect(make_trainer(teachers=teachers())), whole)
    (folder / "effects.json").unlink()  # an array that nothing says is whole
    with open(folder / "effects.npy", "r+b") as file:
        file.seek(-4, 2)
        file.write(bytes(4))
    assert torch.equal(_effect(make_trainer(teachers=teachers())), whole)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("effects.npy", "effects.json"):
        (folder / name).unlink()
    monkeypatch.setattr(effects.FrontDoorSum, "effect", stop)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(teachers=teachers()).train()
    assert list(folder.iterdir()) == []


def test_nothing_is_unpickled(teachers: Any, make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(teachers=teachers()).train()
    place = tmp_path / "causald_effects" / "effects.npy"
    np.save(place, np.array([_Bomb()], dtype=object), allow_pickle=True)
    make_trainer(teachers=teachers()).train()
    assert np.load(place).dtype == np.float32


class _Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_a_broken_manifest_is_said(teachers: Any, make_trainer: Make, tmp_path: Path) -> None:
    (tmp_path / "causald_effects").mkdir()
    (tmp_path / "causald_effects" / "effects.json").write_text("[")
    with pytest.raises(ValueError, match="causald_cache_dir: found a broken"):
        make_trainer(teachers=teachers()).train()


def test_the_manifest_says_what_it_was_made_of(teachers: Any, make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(teachers=teachers(), causald_cache_dir=str(tmp_path / "a" / "b"), **BANK).train()
    found = json.loads((tmp_path / "a" / "b" / "effects.json").read_text())
    assert found["candidates"] == {"number": 5, "seed": 0} and len(found["teachers"]) == 3
    assert found["weights"] == pytest.approx([1 / 3] * 3)


# ------------------------------------------------------------------------------------------------ teachers
def test_teachers_stay_as_they_are_and_are_let_go(teachers: Any, make_trainer: Make) -> None:
    models = teachers()
    models[0].train()
    models[0].model.eval()
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    modes = [[module.training for module in model.modules()] for model in models]
    trainer = make_trainer(teachers=models)
    trainer.train()
    assert modes == [[module.training for module in model.modules()] for model in models]
    for model, weights in zip(models, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(weight.grad is None for weight in model.parameters())
    gone = [weakref.ref(model) for model in models]
    del models, model
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3 and trainer.state.global_step == 3


def test_they_are_evaluated_without_dropout(recommender: Make, make_trainer: Make, tmp_path: Path) -> None:
    still = _effect(make_trainer(teachers=[recommender("gru", 1)]))
    (model := recommender("gru", 1, dropout=0.9)).train()
    options = {"causald_cache_dir": str(tmp_path / "other")}
    assert torch.equal(_effect(make_trainer(teachers=[model], **options)), still)


def test_saved_folders_teach_like_models(teachers: Any, make_trainer: Make, tmp_path: Path) -> None:
    expected = _effect(make_trainer(teachers=teachers()))
    for number, model in enumerate(teachers()):
        model.save_pretrained(tmp_path / f"teacher-{number}")
    options = {"causald_cache_dir": str(tmp_path / "other")}
    folders = [str(tmp_path / "teacher-0"), tmp_path / "teacher-1", teachers()[2]]
    assert torch.equal(_effect(make_trainer(teachers=folders, **options)), expected)
    # what is in the folders is the same as what is in memory
    assert torch.equal(_effect(make_trainer(teachers=teachers(), **options)), expected)


def test_finding_the_effect_draws_no_random_number(teachers: Any, make_trainer: Make, recommender: Make) -> None:
    """A run that computes it trains like one that finds it."""
    models = []
    for _ in range(2):
        models.append(recommender(dropout=0.2))
        make_trainer(models[-1], teachers=teachers()).train()
    weights = [model.state_dict() for model in models]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_teachers_that_cannot_teach(recommender: Make, make_trainer: Make, tmp_path: Path) -> None:
    def refused(message: str, *teachers: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            make_trainer(teachers=list(teachers), **options)

    refused(r"teachers: found none with causald_alpha=0.7, allowed are one or more")
    refused(r"teachers: found a int in place 1", recommender(), 3)
    refused(r"teachers: found no model at '/nowhere'", "/nowhere")
    refused(r"teachers: found teacher 0 \(Linear\), allowed are recommenders", nn.Linear(2, 2))
    refused(
        r"teachers: found 21 items in teacher 1 \(din\), allowed are 20",
        recommender(),
        recommender("din", num_items=21),
    )
    refused(
        r"causald_teacher_weights: found 1, allowed is one for each of 2",
        *[recommender()] * 2,
        causald_teacher_weights=[1.0],
    )
    refused(r"causald_front_door: found 'bank' and teachers that all have no direct path", recommender(), **BANK)
    recommender(num_items=21).save_pretrained(tmp_path / "larger")
    refused(rf"found 21 items in teacher 0 \(gru of {tmp_path}/larger\)", tmp_path / "larger")


def test_items_in_another_order_are_refused(recommender: Make, make_trainer: Make, data: NextItems) -> None:
    student, teacher = recommender(), recommender("din")
    items = data.split.interactions.items
    student.set_items(items)
    teacher.set_items(type(items)([*items.ids[:3], *items.ids[4:], items.ids[3]], None))
    with pytest.raises(
        ValueError, match=r"teachers: found 'item 5' in row 4 of teacher 0 \(din\), allowed is 'item 4'"
    ):
        make_trainer(student, teachers=[teacher]).train()
    teacher.set_items(items)
    make_trainer(student, teachers=[teacher]).train()


def test_scores_that_are_nan_are_named(recommender: Make, make_trainer: Make, tmp_path: Path) -> None:
    with torch.no_grad():
        (teacher := recommender("din")).model.item_embeddings.weight[3] = torch.nan
    student = recommender()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    message = r"teachers: found teacher 1 \(din\) without an effect on rows 0 to .* \(scores: found NaN"
    with pytest.raises(ValueError, match=message):
        make_trainer(student, teachers=[recommender(), teacher]).train()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not list((tmp_path / "causald_effects").iterdir())

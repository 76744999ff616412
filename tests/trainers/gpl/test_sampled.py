"""GPL's trainer on sampled neighbourhoods: the same as on the whole graph where nothing is left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_ext.trainers import GPLTrainer

pytestmark = pytest.mark.filterwarnings("ignore:gpl_held_out. found")
_PRIOR = {"gpl_prior": 0.4}  # an estimate of other batches' scores may jump where they differ by rounding
_SGD = {"optim": "sgd", "learning_rate": 0.5, "gpl_guide": "self"}
_ALL = {"gpl_neighbors": [-1, -1], "per_device_train_batch_size": 60}


def _weights(run: GPLTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _close(one: GPLTrainer, other: GPLTrainer) -> None:
    for name, value in _weights(one).items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def _losses(run: GPLTrainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


@pytest.mark.parametrize("objective", ["gpl", "rank", "nnpu", "upu", "naive"])
@pytest.mark.parametrize("conv", ["gcn", "sage", "gat", "mlp"])
def test_all_neighbours_of_all_nodes_are_the_whole_graph(trainer: Any, model: Any, objective: str, conv: str) -> None:
    runs = []
    for options in ({}, _ALL):
        network = model(conv=conv, dropout=0.0)
        run = trainer(
            network=network,
            gpl_objective=objective,
            num_train_epochs=6,
            gpl_warmup_epochs=3,
            **_SGD,
            **_PRIOR,
            **options,
        )
        run.train()
        runs.append(run)
    _close(*runs)
    for name in ("loss", "positive_loss", "negative_loss"):
        assert _losses(runs[0], name) == pytest.approx(_losses(runs[1], name), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", ["gpl", "rank", "naive"])
@pytest.mark.parametrize("reduction", ["balanced", "sample"])
def test_two_micro_batches_are_one_batch(trainer: Any, model: Any, objective: str, reduction: str) -> None:
    runs = []
    for number in (1, 2):
        batches = {"per_device_train_batch_size": 60 // number, "gradient_accumulation_steps": number}
        run = trainer(
            network=model(dropout=0.0),
            gpl_objective=objective,
            gpl_reduction=reduction,
            **{**_SGD, **_PRIOR, **_ALL, **batches},
        )
        run.train()
        runs.append(run)
    assert runs[0].state.global_step == runs[1].state.global_step == 10
    _close(*runs)
    assert _losses(runs[0]) == pytest.approx(_losses(runs[1]), rel=1e-4)


def test_small_batches_train(trainer: Any) -> None:
    run = trainer(gpl_neighbors=[3, 2], per_device_train_batch_size=16, gpl_guide="mlp")
    run.train()
    assert run.state.global_step == 10 * 4  # 60 seeds, also of batches without a known positive
    assert len(_losses(run, "prior")) == 5  # once an epoch
    assert run.epochs.curves["epoch"] == [5, 6, 7, 8, 9]
    assert {"eval_f1", "eval_auc"} <= run.evaluate().keys()


def test_seeds_are_what_a_mask_calls_unlabelled(trainer: Any, graph: Any) -> None:
    unlabeled = torch.zeros(60, dtype=torch.bool)
    unlabeled[40:] = True
    data = graph(unlabeled_mask=unlabeled & ~graph().positive_mask)
    run = trainer(data=data, gpl_neighbors=[3, 2], per_device_train_batch_size=8)
    run.train()
    own = run.training_graph
    assert len(run.train_dataset) == int((own.labels != -100).sum()) < 60
    assert own.held_out.sum() == 4
    assert (own.unlabeled | ~own.held_out).all()  # held-out positives count as unlabelled


@pytest.mark.parametrize("step", [6, 22, 30])
@pytest.mark.parametrize("options", [{"gpl_guide": "mlp"}, {"gpl_objective": "nnpu"}], ids=["guided", "nnpu"])
def test_resuming_within_an_epoch_is_bit_equal(
    trainer: Any, options: dict[str, Any], step: int, tmp_path: Path
) -> None:
    sampled = {"gpl_neighbors": [3, 2], "per_device_train_batch_size": 16, "output_dir": str(tmp_path / "run")}
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(**options, **sampled, **saving)
    whole.train()
    again = trainer(**options, **sampled, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert _same(_weights(whole), _weights(again))
    assert _losses(whole) == _losses(again)
    assert str(whole.epochs.curves) == str(again.epochs.curves)


def test_workers_of_a_loader_draw_the_same(trainer: Any, model: Any) -> None:
    """Without dropout: a loader with workers draws other numbers of the main process's."""
    runs = []
    for workers in (0, 2):
        run = trainer(
            network=model(dropout=0.0),
            gpl_neighbors=[3, 2],
            per_device_train_batch_size=16,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=bool(workers),
            num_train_epochs=7,
        )
        run.train()
        runs.append(run)
    assert _same(*map(_weights, runs))

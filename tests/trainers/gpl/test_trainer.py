"""GPL's trainer on whole graphs: objectives, what is logged, saved, evaluated and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.data import Data
from transformers import AutoModel, Trainer, TrainingArguments

from hf_ext.data.graphs import GraphCollator, GraphRows
from hf_ext.functional import pu_risk, rank_and_select, rank_select_loss
from hf_ext.models import GraphPUModel
from hf_ext.trainers import GPLTrainer, load_edge_weights

pytestmark = pytest.mark.filterwarnings("ignore:gpl_held_out. found")
OBJECTIVES = ("gpl", "rank", "nnpu", "upu", "naive")


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _logged(trainer: GPLTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ------------------------------------------------------------------------------------------------ objectives
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(trainer: Any, objective: str) -> None:
    run = trainer(gpl_objective=objective, gpl_guide="mlp", num_train_epochs=12)
    before = _weights(run.model)
    run.train()
    assert run.state.global_step == 12  # an epoch is a step
    assert not _same(before, _weights(run.model))
    assert len(_logged(run, "positive_loss")) == len(_logged(run, "negative_loss")) == 12
    assert len(_logged(run, "prior")) == (0 if objective == "naive" else 7)
    assert len(_logged(run, "lpl")) == (7 if objective == "gpl" else 0)
    assert len(_logged(run, "pseudo_homophily")) == (7 if objective in ("gpl", "rank") else 0)
    assert len(_logged(run, "gnn_auc")) == len(_logged(run, "guide_auc")) == (objective in ("gpl", "rank"))
    assert 0 < run.model.config.class_prior < 1
    assert {"eval_f1", "eval_auc", "eval_held_out_recall", "eval_loss"} <= run.evaluate().keys()


def test_naive_is_the_plain_trainer_bit_for_bit(trainer: Any, graph: Any, model: Any, tmp_path: Path) -> None:
    """With dropout 0: a loader of other rows draws other random numbers."""
    plain_args = TrainingArguments(
        str(tmp_path / "plain"), num_train_epochs=6, learning_rate=0.02, report_to="none", use_cpu=True
    )
    run = trainer(
        network=model(dropout=0.0),
        gpl_objective="naive",
        num_train_epochs=6,
        gpl_held_out=0.0,
        lr_scheduler_type="linear",
    )
    run.train()
    rows: Any = GraphRows(graph())
    plain = Trainer(model=model(dropout=0.0), args=plain_args, train_dataset=rows, data_collator=GraphCollator())
    plain.train()
    assert _same(_weights(run.model), _weights(plain.model))


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "naive"])
def test_the_warm_up_is_naive_bit_for_bit(trainer: Any, objective: str) -> None:
    runs = {}
    for name in ("naive", objective):
        run = trainer(gpl_objective=name, gpl_edges="none", num_train_epochs=6, save_strategy="steps", save_steps=5)
        run.train()
        runs[name] = load_file(Path(run.args.output_dir) / "checkpoint-5" / "model.safetensors")
    assert _same(*runs.values())


@pytest.mark.parametrize("objective", ["rank", "nnpu", "upu"])
def test_a_step_is_the_equation(trainer: Any, graph: Any, model: Any, objective: str) -> None:
    """With a prior given and no warm-up: one step of SGD at rate 1, by hand."""
    options = {"gpl_prior": 0.4, "gpl_warmup_epochs": 0, "gpl_guide": "self", "max_steps": 1, "optim": "sgd"}
    run = trainer(network=model(dropout=0.0), gpl_objective=objective, learning_rate=1.0, max_grad_norm=0.0, **options)
    run.train()
    own, network = run.training_graph, model(dropout=0.0)
    logits = network(own.x, own.edge_index).logits
    hidden, held_out = int(own.hidden.sum()), int(own.held_out.sum())
    prior = (0.4 * hidden + held_out) / (hidden + held_out)  # held-out positives count as unlabelled
    if objective == "rank":
        selected = rank_and_select(logits, own.unlabeled, prior=prior)
        losses = rank_select_loss(logits, own.positive, selected)
    else:
        losses = pu_risk(logits, own.positive, own.unlabeled, prior=prior, kind=objective)  # type: ignore[arg-type]
    losses["total"].backward()
    assert _logged(run, "loss") == pytest.approx([losses["total"].item()])
    assert _logged(run, "positive_loss") == pytest.approx([losses["positive"].item()])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(run.model.state_dict()[name], (parameter - parameter.grad).detach(), msg=name)


def test_one_graph_is_no_incomplete_batch(trainer: Any) -> None:
    run = trainer(gpl_objective="rank", dataloader_drop_last=True, gradient_accumulation_steps=4)
    run.train()
    assert run.state.global_step == 10  # there is nothing to accumulate
    assert run.args.dataloader_drop_last


# ------------------------------------------------------------------------------------------------ results
def test_the_configuration_has_prior_and_cut(trainer: Any) -> None:
    run = trainer(gpl_objective="rank")
    run.train()
    config, own = run.model.config, run.training_graph
    low, high = config.prior_interval
    assert low <= config.class_prior <= high
    predicted = run.model.predict(own.x, own.edge_index)
    hidden = own.hidden
    assert float(predicted.probabilities[hidden].mean()) == pytest.approx(config.class_prior, abs=1e-4)
    assert int(predicted.positive[hidden].sum()) == int(config.class_prior * int(hidden.sum()) + 0.5)


def test_a_prior_that_is_given_stays(trainer: Any) -> None:
    run = trainer(gpl_prior=0.2)
    run.train()
    assert run.model.config.class_prior == 0.2
    assert run.model.config.prior_interval is None
    assert set(_logged(run, "prior")) == {0.2}


def test_free_weights_lie_beside_the_model(trainer: Any, tmp_path: Path) -> None:
    run = trainer(gpl_guide="self")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    found = load_edge_weights(tmp_path / "saved")
    assert found is not None
    index, weight = found
    assert torch.equal(index, run.training_graph.edge_index)
    assert weight.std() > 0
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    logits = loaded.predict(run.training_graph.x, index, weight).logits
    assert torch.equal(logits, torch.from_numpy(run.predict(run.eval_dataset).predictions))
    assert not torch.equal(logits, loaded.predict(run.training_graph.x, index).logits)


def test_no_weights_lie_beside_a_model_that_learnt_none(trainer: Any, tmp_path: Path) -> None:
    for number, options in enumerate(({"gpl_guide": "self"}, {"gpl_objective": "rank"})):
        run = trainer(**options)
        run.train()
        run.save_model(str(tmp_path / "saved"))
        assert (load_edge_weights(tmp_path / "saved") is None) == bool(number)  # an older file goes


def test_both_directions_share_a_weight(trainer: Any) -> None:
    for tied in (True, False):
        run = trainer(gpl_guide="self", gpl_tie_directions=tied)
        run.train()
        weight, half = run.epochs.edge_weight(), run.training_graph.edge_index.shape[1] // 2
        assert torch.equal(weight[:half], weight[half:]) == tied


def test_a_scorer_is_trained_by_the_epochs_alone(trainer: Any, model: Any, tmp_path: Path) -> None:
    network = model(edge_scorer=True)
    before = _weights(network.edge_scorer)
    run = trainer(network=network, gpl_edges="scorer", gpl_guide="self")
    run.train()
    assert not _same(before, _weights(network.edge_scorer))
    in_optimizer = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert not in_optimizer & {id(parameter) for parameter in network.edge_scorer.parameters()}
    assert all(parameter.requires_grad for parameter in network.parameters())  # as they were
    run.save_model(str(tmp_path / "saved"))
    assert load_edge_weights(tmp_path / "saved") is None  # it is a part of the model
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    own = run.training_graph
    torch.testing.assert_close(
        loaded.predict(own.x, own.edge_index).logits, torch.from_numpy(run.predict(run.eval_dataset).predictions)
    )


def test_a_warm_up_leaves_a_scorer_alone(trainer: Any, model: Any) -> None:
    network = model(edge_scorer=True)
    before = _weights(network.edge_scorer)
    trainer(network=network, gpl_edges="scorer", gpl_guide="self", gpl_edge_steps=0).train()
    assert _same(before, _weights(network.edge_scorer))


# ------------------------------------------------------------------------------------------------ evaluation
def test_evaluation_tells_roles_apart(trainer: Any) -> None:
    run = trainer()
    run.train()
    found = run.predict(run.eval_dataset)
    assert found.predictions.shape == found.label_ids.shape == (60,)
    own = run.training_graph
    assert (found.label_ids == 2).sum() == own.held_out.sum() == 4  # 30 % of 14
    assert (found.label_ids == -100).sum() == own.positive.sum() == 10
    assert (found.label_ids[own.hidden.numpy()] == own.truth[own.hidden].numpy()).all()


def test_a_naive_run_is_cut_at_the_prior_of_its_end(trainer: Any) -> None:
    run = trainer(gpl_objective="naive")
    run.train()
    assert run.model.config.class_prior is not None and run.epochs.prior is None
    assert {"eval_f1_at_prior", "eval_prior_error"} <= run.evaluate().keys()


def test_without_truth_there_is_only_recall(trainer: Any, graph: Any) -> None:
    data = graph()
    del data.pu_y
    run = trainer(data=data)
    run.train()
    metrics = run.evaluate()
    assert {"eval_held_out_recall", "eval_lee_liu", "eval_loss"} <= metrics.keys()
    assert not {"eval_f1", "eval_auc"} & metrics.keys()


def test_the_loss_of_an_evaluation_is_the_plain_one(trainer: Any) -> None:
    run = trainer(gpl_objective="rank")
    run.train()
    own = run.training_graph
    run.model.eval()
    expected = run.model(own.x, own.edge_index, labels=own.labels).loss
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.item())


def test_other_graphs_can_be_evaluated(trainer: Any, graph: Any, model: Any) -> None:
    other = graph(same=0.6)
    run = trainer(gpl_guide="self", parts={"eval_dataset": {"own": graph(), "other": other}})
    run.train()
    assert {"eval_own_f1", "eval_other_f1"} <= run.evaluate().keys()
    logits = torch.from_numpy(run.predict(other).predictions)
    assert torch.equal(logits, run.model.predict(other).logits)  # its edges have no learnt weights
    scored = trainer(network=model(edge_scorer=True), gpl_edges="scorer", gpl_guide="self")
    scored.train()
    logits = torch.from_numpy(scored.predict(other).predictions)
    torch.testing.assert_close(logits, scored.model.predict(other).logits)


def test_an_evaluation_before_any_training(trainer: Any, model: Any) -> None:
    for config, options in (({}, {}), ({"edge_scorer": True}, {"gpl_edges": "scorer"})):
        run = trainer(network=model(**config), **options)
        logits = torch.from_numpy(run.predict(run.eval_dataset).predictions)
        torch.testing.assert_close(logits, run.model.predict(run.eval_dataset).logits)
        assert "eval_f1_at_prior" not in run.evaluate()  # no prior is known


def test_own_metrics_are_asked_for(trainer: Any) -> None:
    run = trainer(parts={"compute_metrics": lambda prediction: {"nodes": len(prediction.predictions)}})
    run.train()
    metrics = run.evaluate()
    assert metrics["eval_nodes"] == 60
    assert "eval_f1" not in metrics


# ------------------------------------------------------------------------------------------------ checkpoints
_RESUMED: dict[str, dict[str, Any]] = {
    "guided": {"gpl_guide": "mlp"},
    "auto": {"gpl_guide": "auto"},
    "each epoch": {"gpl_guide": "self", "gpl_prior_update": "each_epoch"},
    "scorer": {"gpl_guide": "self", "gpl_edges": "scorer"},
    "nnpu": {"gpl_objective": "nnpu"},
}


@pytest.mark.parametrize("step", [3, 5, 7])
@pytest.mark.parametrize("options", _RESUMED.values(), ids=_RESUMED)
def test_resuming_is_bit_equal(trainer: Any, model: Any, options: dict[str, Any], step: int, tmp_path: Path) -> None:
    """Within the warm-up, at its end, and after it; with dropout."""
    config = {"edge_scorer": options.get("gpl_edges") == "scorer"}
    saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "run")}
    whole = trainer(network=model(**config), **options, **saving)
    whole.train()
    again = trainer(network=model(**config), **options, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert _same(_weights(whole.model), _weights(again.model))
    assert _logged(whole, "loss") == _logged(again, "loss")
    one, other = whole.epochs.state(), again.epochs.state()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else str(value) == str(other[name])


def test_the_best_checkpoint_brings_its_weights_of_edges(trainer: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_mine", "greater_is_better": False}
    seen: list[float] = []

    def mine(prediction: Any) -> dict[str, float]:
        seen.append(len(seen))
        return {"mine": abs(len(seen) - 7)}

    run = trainer(gpl_guide="self", parts={"compute_metrics": mine}, **saving, **best)
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-7")
    saved = load_file(Path(run.state.best_model_checkpoint) / "edge_weights.safetensors")["edge_weight"]
    assert torch.equal(run.epochs.edge_weight(), saved)
    last = load_file(Path(run.args.output_dir) / "checkpoint-10" / "edge_weights.safetensors")["edge_weight"]
    assert not torch.equal(saved, last)


def test_a_second_run_starts_anew(trainer: Any) -> None:
    run = trainer(gpl_guide="self", num_train_epochs=7)
    run.train()
    first = run.epochs
    run.train()
    assert run.epochs is not first
    assert len(_logged(run, "lpl")) == 2


def test_a_checkpoint_of_another_graph_is_refused(trainer: Any, graph: Any, tmp_path: Path) -> None:
    run = trainer(save_strategy="steps", save_steps=6)
    run.train()
    data = graph()
    smaller = data.subgraph(torch.arange(50))
    other = trainer(data=smaller)
    before = _weights(other.model)
    with pytest.raises(
        ValueError, match="resume_from_checkpoint: found 60 nodes, allowed are the 50 of train_dataset"
    ):
        other.train(resume_from_checkpoint=str(Path(run.args.output_dir) / "checkpoint-6"))
    assert _same(before, _weights(other.model))


# ------------------------------------------------------------------------------------------------ cards
def test_the_card_shows_prior_and_homophily(trainer: Any) -> None:
    run = trainer(gpl_guide="self")
    run.train()
    run.evaluate()
    facts = run.card_facts()
    epochs = facts["facts"]["prior_epochs"]
    assert epochs["epoch"] == [5, 6, 7, 8, 9]
    assert len(epochs["prior"]) == len(epochs["homophily"]) == 5
    assert 0 <= epochs["true_prior"] <= 1
    assert sum(facts["facts"]["reliability"]["rows"]) == int(run.training_graph.hidden.sum())
    run.save_model()
    run.create_model_card()
    card = (Path(run.args.output_dir) / "README.md").read_text()
    assert "class_prior.png" in card and "reliability.png" in card
    json.dumps(facts["facts"])


def test_the_graph_is_left_as_it_was(trainer: Any, graph: Any) -> None:
    data: Data = graph()
    before = {name: value.clone() for name, value in data.to_dict().items()}
    trainer(data=data).train()
    assert _same(before, data.to_dict())
    assert isinstance(trainer(data=data).model, GraphPUModel)


# ------------------------------------------------------------------------------------------------ precision
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_half_precision_trains(trainer: Any, objective: str) -> None:
    """Layers in bfloat16; degrees, propagation, prior and losses are not."""
    run = trainer(gpl_objective=objective, gpl_guide="mlp", bf16=True, num_train_epochs=7)
    run.train()
    assert run.epochs.operator()[1].dtype == run.epochs.logits().dtype == torch.float32
    assert all(torch.isfinite(torch.tensor(_logged(run, "loss"))))
    assert {"eval_f1", "eval_auc"} <= run.evaluate().keys()


def test_an_evaluation_in_half_precision(trainer: Any) -> None:
    run = trainer(gpl_objective="rank", bf16_full_eval=True)
    run.train()
    assert {"eval_f1", "eval_auc", "eval_loss"} <= run.evaluate().keys()

"""What GPL refuses before its first step, by name, and what it warns of."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData
from transformers import Trainer, TrainingArguments

from hf_ext.trainers import DivBSMixin, GPLArguments, GPLMixin, GPLTrainer

_FEW = pytest.mark.filterwarnings("ignore:gpl_held_out. found")


# ------------------------------------------------------------------------------------------------ arguments
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpl_objective": "pu"}, "gpl_objective: found 'pu'"),
        ({"gpl_prior": 1.5}, r"gpl_prior: found 1.5, allowed are 'bbe', 'en' and numbers in \(0, 1\)"),
        ({"gpl_prior": "0"}, "gpl_prior: found '0'"),
        ({"gpl_prior": "km"}, "gpl_prior: found 'km'"),
        ({"gpl_prior": True}, "gpl_prior: found True"),
        ({"gpl_prior": None}, "gpl_prior: found None"),
        ({"gpl_prior": "en", "gpl_prior_update": "each_epoch"}, "gpl_prior: found 'en' with gpl_prior_update"),
        ({"gpl_warmup_epochs": 0}, "gpl_warmup_epochs: found 0 with gpl_prior='bbe'"),
        ({"gpl_held_out": 1.0}, "gpl_held_out: found 1.0"),
        ({"gpl_edge_lr": 0}, "gpl_edge_lr: found 0"),
        ({"gpl_edge_start": float("nan")}, "gpl_edge_start: found nan"),
        ({"gpl_propagation_alpha": 2}, "gpl_propagation_alpha: found 2"),
        ({"gpl_neighbors": [3, 0]}, r"gpl_neighbors: found \[3, 0\]"),
        ({"gpl_neighbors": []}, r"gpl_neighbors: found \[\]"),
        ({"gpl_neighbors": "3"}, "gpl_neighbors: found '3'"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPLArguments(**options)


def test_a_prior_from_a_command_line_is_a_number() -> None:
    assert GPLArguments(gpl_prior="0.25").gpl_prior == 0.25
    assert GPLArguments(gpl_prior=0.25).gpl_prior == 0.25
    assert GPLArguments(gpl_prior="en").gpl_prior == "en"


def test_arguments_are_parsed_from_a_command_line() -> None:
    from transformers import HfArgumentParser

    words = ["--gpl_prior", "0.3", "--gpl_neighbors", "10", "5", "--gpl_tie_directions", "false"]
    parser: Any = HfArgumentParser(GPLArguments)  # type: ignore[arg-type]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert (args.gpl_prior, args.gpl_neighbors, args.gpl_tie_directions) == (0.3, [10, 5], False)


# ------------------------------------------------------------------------------------------------ graphs
def _broken(data: Any, **values: Any) -> Any:
    for name, value in values.items():
        data[name] = value
    return data


@_FEW
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"edge_index": torch.tensor([[0], [60]])}, "edge_index: found node 60"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.long)}, "edge_index: found"),
        ({"x": torch.full((60, 5), float("nan"))}, "x: found nan"),
        ({"x": torch.zeros(60, 4)}, "x: found 4 features, allowed are the model's 5"),
        ({"edge_weight": torch.zeros(3)}, "edge_weight: found"),
        ({"positive_mask": torch.zeros(60, dtype=torch.bool)}, "positive_mask: found no positive node"),
        ({"positive_mask": torch.ones(60, dtype=torch.bool), "pu_y": None}, "positive_mask: found no unlabelled node"),
        (
            {"held_out_mask": torch.zeros(60, dtype=torch.bool)},
            "gpl_held_out: found no held-out positive with gpl_prior",
        ),
    ],
)
def test_graphs(trainer: Any, graph: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(data=_broken(graph(), **values))


def test_negative_weights(trainer: Any, graph: Any) -> None:
    data = graph()
    data.edge_weight = -torch.ones(data.edge_index.shape[1])
    with pytest.raises(ValueError, match=r"edge_weight: found -1\.0 at edge 0"):
        trainer(data=data)


def test_graphs_of_several_kinds(trainer: Any) -> None:
    with pytest.raises(ValueError, match="data: found HeteroData"):
        trainer(data=HeteroData())


def test_one_positive_cannot_be_held_out(trainer: Any, graph: Any) -> None:
    with pytest.raises(ValueError, match=r"gpl_held_out: found 0\.3 with 1 known positives"):
        trainer(data=graph(known=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "gpl_held_out: found no held-out positive with gpl_prior='bbe'"),
        ({"gpl_prior": 0.3}, "gpl_held_out: found no held-out positive with gpl_guide='auto'"),
        ({"gpl_prior": 0.3, "gpl_guide": "self"}, ""),
        ({"gpl_prior": 0.3, "gpl_objective": "nnpu"}, ""),
        ({"gpl_objective": "naive"}, ""),
    ],
)
def test_none_are_held_out_only_where_nothing_needs_them(trainer: Any, options: dict[str, Any], message: str) -> None:
    if message:
        with pytest.raises(ValueError, match=message):
            trainer(gpl_held_out=0.0, **options)
        return
    run = trainer(gpl_held_out=0.0, **options)
    run.train()
    assert run.model.config.class_prior == options.get("gpl_prior")
    assert {"eval_f1", "eval_auc"} <= run.evaluate().keys()


# ------------------------------------------------------------------------------------------------ models and trainers
@_FEW
@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"edge_scorer": True}, {}, "edge_scorer: found True with gpl_objective='gpl' and gpl_edges='free'"),
        ({}, {"gpl_edges": "scorer"}, "edge_scorer: found False with"),
        ({"edge_scorer": True}, {"gpl_edges": "scorer", "gpl_objective": "rank"}, "edge_scorer: found True with"),
        (
            {"edge_scorer": True},
            {"gpl_edges": "scorer", "gpl_edge_kind": "softmax"},
            "gpl_edge_kind: found 'softmax' and a model of edge_kind='sigmoid'",
        ),
        ({}, {"gpl_neighbors": [5]}, "gpl_neighbors: found 1 fan-outs and a model of 2 layers"),
        ({}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor: found 0.1"),
    ],
)
def test_models(trainer: Any, model: Any, config: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(network=model(**config), **options)


@_FEW
def test_other_models_are_refused(trainer: Any, vit: Any) -> None:
    with pytest.raises(ValueError, match="model: found ViTForImageClassification, allowed is GraphPUModel"):
        trainer(network=vit())


@_FEW
def test_adapters_are_refused(trainer: Any, model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    network: Any = get_peft_model(model(conv="mlp"), LoraConfig(target_modules=["layers.0"]))
    with pytest.raises(ValueError, match=r"model: found PeftModel\w*, allowed is GraphPUModel"):
        trainer(network=network)


@_FEW
def test_a_loss_of_ones_own_is_refused(trainer: Any) -> None:
    with pytest.raises(ValueError, match="compute_loss_func: found one, allowed is none"):
        trainer(parts={"compute_loss_func": lambda *_, **__: 0})


@_FEW
def test_several_gpus_in_one_process_are_refused(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="n_gpu: found 2 GPUs in one process, allowed is one per process"):
        trainer()


@_FEW
@pytest.mark.parametrize(("flag", "name"), [("is_fsdp_enabled", "FSDP"), ("is_deepspeed_enabled", "DeepSpeed")])
def test_sharded_weights_are_refused(trainer: Any, flag: str, name: str) -> None:
    """As Trainer's own flags say, which take processes to be set."""
    run = trainer()
    setattr(run, flag, True)
    with pytest.raises(ValueError, match=f"model: found {name}, allowed are weights that are not sharded"):
        run.check_arguments()


@_FEW
def test_a_collator_is_refused(trainer: Any) -> None:
    with pytest.raises(ValueError, match="data_collator: found function, allowed is None"):
        trainer(parts={"data_collator": lambda rows: rows})


@_FEW
def test_other_methods_are_refused(graph: Any, model: Any, tmp_path: Path) -> None:
    from dataclasses import make_dataclass

    from hf_ext.trainers import DivBSArguments, GPLConfig

    kind: Any = type("Both", (DivBSMixin, GPLMixin, Trainer), {})
    config: Any = make_dataclass("Config", [], bases=(DivBSArguments, GPLConfig))
    with pytest.raises(ValueError, match="divbs: found it combined with gpl, allowed is no other method: its batches"):
        kind(model=model(), args=config(str(tmp_path), use_cpu=True), train_dataset=graph())


def test_plain_arguments_are_refused(graph: Any, model: Any, tmp_path: Path) -> None:
    message = "args: found TrainingArguments, allowed is one with GPLArguments mixed in, such as GPLConfig"
    with pytest.raises(ValueError, match=message):
        GPLTrainer(model=model(), args=TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=graph())


@_FEW
@pytest.mark.parametrize(
    "options", [{"num_train_epochs": 5}, {"max_steps": 5}, {"max_steps": 20, "gpl_neighbors": [2, 2]}]
)
def test_a_run_that_ends_with_its_warm_up_is_refused(trainer: Any, options: dict[str, Any]) -> None:
    run = trainer(**options, per_device_train_batch_size=16)  # of 60 seeds, 4 steps an epoch
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(ValueError, match="gpl_warmup_epochs: found 5 with 5 epochs, allowed are fewer"):
        run.train()
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in before.items())
    assert not Path(run.args.output_dir).exists() or not list(Path(run.args.output_dir).iterdir())


# ------------------------------------------------------------------------------------------------ warnings
def test_few_held_out_positives(trainer: Any) -> None:
    with pytest.warns(UserWarning, match="gpl_held_out: found 4 held-out positives"):
        trainer()


@_FEW
def test_edges_between_the_classes(trainer: Any, graph: Any) -> None:
    with pytest.warns(UserWarning, match="edge_index: found an adjusted homophily of -0"):
        trainer(data=graph(same=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="gpl_held_out. found")
        trainer(data=graph(same=0.9))


@_FEW
def test_loops_are_left_out(trainer: Any, graph: Any) -> None:
    data = graph()
    looped = graph(edge_index=torch.cat([data.edge_index, torch.arange(60).expand(2, -1)], dim=1))
    with pytest.warns(UserWarning, match="edge_index: 60 self-loops are left out"):
        run = trainer(data=looped)
    assert torch.equal(run.training_graph.edge_index, data.edge_index)

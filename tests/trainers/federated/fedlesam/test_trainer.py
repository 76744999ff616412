"""FedLESAM at a client: what it leaves as it was, whom it works with, what it keeps and sends, refusals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from hf_ext.trainers import DISAMArguments, DISAMMixin, DivBSArguments, DivBSMixin
from hf_ext.trainers.federated import FedLESAMArguments, FedLESAMConfig, FedLESAMMixin, FedLESAMTrainer
from hf_ext.trainers.federated.rounds import Contribution, FederatedMixin, Round

TINY = 1e-30  # a perturbation that changes no weight


def _options(out: Path, **extra: Any) -> dict[str, Any]:
    defaults = {"max_steps": 4, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return {"output_dir": str(out), **defaults, **quiet, **extra}


def _trainer(model: nn.Module, out: Path, rows: Dataset, **extra: Any) -> FedLESAMTrainer:
    return FedLESAMTrainer(model, FedLESAMConfig(**_options(out, **extra)), train_dataset=rows)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def _moved(weights: Mapping[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + (0.1 * torch.randn(value.shape, generator=generator)).to(value)
        for name, value in weights.items()
    }


def _round(model: nn.Module, *, earlier: bool = True, number: int = 2, **parts: Any) -> Round:
    received = _weights(model)
    memory = {"received": _moved(received)} if earlier else {}
    return Round(**{"number": number, "client": 1, "config": {}, "received": received, "memory": memory, **parts})


def _run(trainer: Any, round: Round, **how: Any) -> Contribution:
    trainer.begin_round(round)
    trainer.train(**how)
    given: Contribution = trainer.end_round()
    return given


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def _with_norms() -> ResNetForImageClassification:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=5, **sizes))


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.remove_columns("task_ids")


# ------------------------------------------------------------------------------------------------ neutral
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize(
    ("settings", "earlier"),
    [
        ({"fedlesam_rho": 0.0}, True),
        ({"fedlesam_rho": TINY}, True),
        ({"fedlesam_rho": 0.5}, False),
        ({"fedlesam_rho": 0.5}, None),
        ({"fedlesam_rho": 0.5, "fedlesam_source": "server"}, None),
    ],
)
def test_without_a_perturbation_it_is_the_plain_trainer(
    kind: str, settings: dict[str, Any], earlier: bool | None, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    """Bit for bit, with dropout, BatchNorm and accumulation: rho 0, a first round, no round at all."""
    options = {"gradient_accumulation_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-3}
    plain, client = (
        _with_norms() if kind == "resnet" else vit(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        for _ in range(2)
    )
    usual = Trainer(plain, TrainingArguments(**_options(tmp_path, **options)), train_dataset=rows)
    usual.train()
    trainer = _trainer(client, tmp_path, rows, **options, **settings)
    if earlier is not None:
        trainer.begin_round(_round(client, earlier=earlier))
    trainer.train()
    assert _same(plain, client)
    logged, own = ([entry.get("loss") for entry in one.state.log_history] for one in (usual, trainer))
    assert logged == own
    other = _with_norms() if kind == "resnet" else vit()
    assert not _same(plain, other)
    if earlier:  # and in a round like this one a perturbation is seen
        _run(_trainer(other, tmp_path, rows, **options, fedlesam_rho=0.5), _round(other))
        assert not _same(plain, other)


def test_evaluation_in_a_round(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """At the weights as they are; nothing has been trained, and nothing is kept."""
    model = vit()
    args = FedLESAMConfig(**_options(tmp_path, fedlesam_variant="S"))
    trainer = FedLESAMTrainer(model, args, train_dataset=rows, eval_dataset=rows)
    expected = trainer.evaluate()["eval_loss"]
    trainer.begin_round(_round(model))
    assert trainer.evaluate()["eval_loss"] == expected
    assert trainer.end_round() == Contribution()
    assert _same(model, vit())


def test_an_update_of_zeros(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """The global model has not changed: no direction, nor a random one in its place."""
    plain = vit()
    Trainer(plain, TrainingArguments(**_options(tmp_path)), train_dataset=rows).train()
    for direction in ("global", "random"):
        model = vit()
        trainer = _trainer(model, tmp_path, rows, fedlesam_direction=direction)
        _run(trainer, _round(model, memory={"received": _weights(model)}))
        assert _same(plain, model)


@pytest.mark.parametrize("variant", ["S", "D"])
def test_training_without_an_update(variant: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """Rates of 0 in all updates: nothing is divided by zero, and the controls stay."""
    model, config = vit(), {"fedlesam-variant": variant}
    control = _moved(_weights(model), seed=5)
    trainer = _trainer(model, tmp_path, rows, learning_rate=0.0, fedlesam_variant=variant)
    given = _run(trainer, _round(model, config=config, memory={"control": control}))
    assert _same(model, vit())
    assert all(torch.equal(given.memory["control"][name], value) for name, value in control.items())
    assert all(not bool(value.any()) for value in given.sent.get("control", {}).values())


# ------------------------------------------------------------------------------------------------ the perturbation
def _seen(trainer: FedLESAMTrainer) -> list[dict[str, Tensor]]:
    """Fills up with the trained weights at every forward pass in training."""
    seen: list[dict[str, Tensor]] = []
    trainer.model.register_forward_pre_hook(
        lambda module, _: seen.append(_weights(module)) if module.training else None
    )
    return seen


def test_every_forward_pass_is_at_the_moved_weights(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """One pass per micro-batch, `eps` from the trained parameters alone, frozen ones untouched."""
    model = vit()
    for param in model.vit.embeddings.parameters():
        param.requires_grad = False
    round = _round(model)
    trainer = _trainer(model, tmp_path, rows, max_steps=1, gradient_accumulation_steps=3, fedlesam_rho=0.7)
    seen = _seen(trainer)
    _run(trainer, round)
    assert len(seen) == 3
    change = {name: round.memory["received"][name] - value for name, value in round.received.items()}
    length = torch.cat([one.flatten() for one in change.values()]).norm()
    for weights in seen:
        for name, value in weights.items():
            torch.testing.assert_close(value - round.received[name], 0.7 * change[name] / length, rtol=1e-3, atol=1e-7)
    entry = trainer.state.log_history[0]
    assert entry["perturbation_norm"] == pytest.approx(0.7, rel=1e-6)
    start = vit()
    pairs = zip(model.vit.embeddings.parameters(), start.vit.embeddings.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not _same(model, start)


def test_a_random_direction(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """Of the same length, the same in all of a round, another in each round and at each client and seed."""

    def steps(seed: int = 3, **parts: Any) -> list[Tensor]:
        model = vit()
        trainer = _trainer(model, tmp_path, rows, fedlesam_direction="random", learning_rate=0.0, seed=seed)
        seen = _seen(trainer)
        round = replace(_round(model), **parts)
        _run(trainer, round)
        assert len(seen) == 4 and all(torch.equal(seen[0][name], one[name]) for one in seen[1:] for name in one)
        return [seen[0][name] - round.received[name] for name in round.received]

    first = steps()
    assert torch.cat([one.flatten() for one in first]).norm().item() == pytest.approx(0.1, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(first, steps(), strict=True))
    for other in ({"number": 3}, {"client": 2}, {"seed": 4}):
        assert not torch.equal(first[0], steps(**other)[0])


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_leaves_the_weights(call: int, rows: Dataset, tmp_path: Path) -> None:
    model, calls = _with_norms(), []

    def count(module: nn.Module, _: Any) -> None:
        if module.training:
            calls.append(_weights(module))
            if len(calls) == call:
                raise Interrupt

    model.register_forward_pre_hook(count)
    trainer = _trainer(model, tmp_path, rows, gradient_accumulation_steps=2, fedlesam_rho=0.5)
    trainer.begin_round(_round(model))
    with pytest.raises(Interrupt):
        trainer.train()
    before = _with_norms()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert not torch.equal(calls[-1]["classifier.1.weight"], before.classifier[1].weight)


@pytest.mark.parametrize("extra", [{"bf16": True}, {"activation_checkpointing": True}, {"torch_compile": False}])
def test_training_of_other_kinds(
    extra: dict[str, Any], vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    usual, other = vit(), vit()
    _run(_trainer(usual, tmp_path, rows, fedlesam_rho=0.5), _round(usual))
    _run(_trainer(other, tmp_path, rows, fedlesam_rho=0.5, **extra), _round(other))
    assert _difference(usual, other) < (0.05 if "bf16" in extra else 1e-6)
    assert not _same(usual, vit())


@pytest.mark.parametrize("variant", ["base", "S", "D"])
def test_weights_in_bfloat16(variant: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """What is kept and sent is float32, and can be taken up again."""
    model, config = vit().bfloat16(), {"fedlesam-variant": variant}
    halves = rows.with_transform(
        lambda batch: {
            "pixel_values": torch.tensor(batch["pixel_values"]).bfloat16(),
            "labels": torch.tensor(batch["labels"]),
        }
    )
    memory: Mapping[str, Any] = {}
    for number in (1, 2, 3):
        trainer = _trainer(model, tmp_path, halves, fedlesam_variant=variant, fedlesam_rho=0.5)
        given = _run(trainer, _round(model, number=number, config=config, memory=memory))
        memory = given.memory
    assert trainer.state.log_history[0]["perturbation_norm"] == pytest.approx(0.5, rel=1e-2)
    assert {value.dtype for entry in (*memory.values(), *given.sent.values()) for value in entry.values()} == {
        torch.float32
    }
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}


def test_only_the_adapter_takes_part(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    base = vit()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(vit(), config)
    round = _round(model, config={"fedlesam-variant": "D", "proximal-mu": 0.1})
    assert 0 < len(round.received) < 20
    trainer = _trainer(model, tmp_path, rows, fedlesam_variant="D", fedlesam_rho=0.5)
    given = _run(trainer, round)
    assert given.memory["control"].keys() == given.memory["received"].keys() == round.received.keys()
    own, kept = base.vit.state_dict(), model.get_base_model().vit.state_dict()
    assert all(
        torch.equal(value, kept[name.replace("_proj.", "_proj.base_layer.")])
        if "q_proj" in name or "v_proj" in name
        else torch.equal(value, kept[name])
        for name, value in own.items()
    )
    assert trainer.state.log_history[0]["perturbation_norm"] == pytest.approx(0.5, rel=1e-5)
    entry = trainer.state.log_history[1]
    assert entry["control_norm"] == pytest.approx(entry["proximal_norm"], rel=1e-6) and entry["proximal_norm"] > 0


@dataclass
class SelectingConfig(DivBSArguments, FedLESAMArguments, TrainingArguments):
    pass


class Selecting(DivBSMixin, FedLESAMMixin, Trainer):
    pass


class SelectingToo(FedLESAMMixin, DivBSMixin, Trainer):
    pass


def test_with_divbs(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """In either order the candidates are looked at where the weights are, and one pass goes over those picked."""
    models = []
    for kind in (Selecting, SelectingToo):
        model = vit()
        trainer = kind(
            model, SelectingConfig(**_options(tmp_path, divbs_ratio=0.5, fedlesam_rho=0.5)), train_dataset=rows
        )
        seen: list[tuple[int, bool]] = []
        round = _round(model)
        first = next(iter(round.received))
        model.register_forward_pre_hook(
            lambda module, _, inputs, seen=seen, round=round, first=first: seen.append(
                (len(inputs["pixel_values"]), torch.equal(module.state_dict()[first], round.received[first]))
            ),
            with_kwargs=True,
        )
        _run(trainer, round)
        assert seen[0] == (16, True) and (8, False) in seen[:3]
        assert {"perturbation_norm", "captured_fraction"} <= trainer.state.log_history[0].keys()
        models.append(model)
    assert _same(*models)


# ------------------------------------------------------------------------------------------------ FedProx
class Plain(FederatedMixin, Trainer):
    pass


def test_any_federated_trainer_follows_fedprox(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    near, far, plain = vit(), vit(), vit()
    Trainer(plain, TrainingArguments(**_options(tmp_path)), train_dataset=rows).train()
    for model, weight in ((far, 0), (near, 5.0)):
        trainer = Plain(model, TrainingArguments(**_options(tmp_path)), train_dataset=rows)
        _run(trainer, _round(model, config={"proximal-mu": weight}))
        assert ("proximal_norm" in trainer.state.log_history[0]) == bool(weight)
    assert _same(far, plain)
    assert _difference(near, vit()) < 0.8 * _difference(far, vit())
    lengths = [entry["proximal_norm"] for entry in trainer.state.log_history if "loss" in entry]
    assert lengths[0] == 0 < lengths[1]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "0.1"])
def test_a_weight_of_fedprox_that_is_none(weight: Any, vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    trainer = Plain(vit(), TrainingArguments(**_options(tmp_path)), train_dataset=rows)
    with pytest.raises(ValueError, match=r"proximal-mu: found .*, allowed are (finite )?numbers >= 0"):
        trainer.begin_round(_round(trainer.model, config={"proximal-mu": weight}))


# ------------------------------------------------------------------------------------------------ checkpoints
@pytest.mark.parametrize("variant", ["base", "S", "D"])
def test_a_round_that_is_resumed(variant: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """Weights, controls and what is sent are those of a round that was not interrupted, bit for bit."""
    saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear", "fedlesam_variant": variant}
    given = []
    start = vit()
    memory = {"received": _moved(_weights(start)), "control": _moved(_weights(start), seed=2)}
    round = _round(start, config={"fedlesam-variant": variant}, memory=memory)
    whole, again = vit(), vit()
    given.append(_run(_trainer(whole, tmp_path, rows, **saving), round))
    trainer = _trainer(again, tmp_path, rows, **saving)
    given.append(_run(trainer, round, resume_from_checkpoint=str(tmp_path / "checkpoint-2")))
    assert _same(whole, again)
    assert trainer.state.global_step == 4
    for one, other in zip(*([*each.memory.values(), *each.sent.values()] for each in given), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for wrong, words in ((replace(round, number=3), "of round 3 of client 1"), (None, "of no federation")):
        model = vit()
        trainer = _trainer(model, tmp_path, rows, **saving)
        if wrong is not None:
            trainer.begin_round(wrong)
        with pytest.raises(ValueError, match=f"found a checkpoint of round 2 of client 1, allowed is one {words}"):
            trainer.train(resume_from_checkpoint=True)
        assert _same(model, start)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fedlesam_rho": -1.0}, "fedlesam_rho: found -1.0, allowed are numbers >= 0"),
        ({"fedlesam_variant": "s"}, "fedlesam_variant: found 's', allowed are 'base', 'S', 'D'"),
        ({"fedlesam_source": "both"}, "fedlesam_source: found 'both', allowed are 'client', 'server'"),
        ({"fedlesam_lamb": float("inf")}, "fedlesam_lamb: found inf"),
        ({"fedlesam_direction": "up"}, "fedlesam_direction: found 'up', allowed are 'global', 'random'"),
        ({"optim": "lomo"}, "optim: found 'lomo', allowed are those that do not step during the backward"),
        ({"optim": "adamw_torch", "fedlesam_variant": "S"}, "optim: found 'adamw_torch', allowed is 'sgd' with fedl"),
        (
            {"fedlesam_variant": "S", "load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"},
            "load_best_model_at_end: found True, allowed is False with fedlesam_variant='S'",
        ),
    ],
)
def test_refusals(
    settings: dict[str, Any], words: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        _trainer(vit(), tmp_path, rows, **settings)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (lambda params: torch.optim.AdamW(params), "optimizer: found AdamW, allowed is torch.optim.SGD with"),
        (
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
            "optimizer: found momentum=0.9, allowed is none",
        ),
    ],
)
def test_optimizers_that_are_no_plain_sgd(
    optimizer: Any, words: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    model = vit()
    args = FedLESAMConfig(**_options(tmp_path, fedlesam_variant="S"))
    with pytest.raises(ValueError, match=words):
        FedLESAMTrainer(model, args, train_dataset=rows, optimizers=(optimizer(model.parameters()), None))


def test_momentum_is_refused_before_the_first_step(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    model = vit()
    trainer = _trainer(model, tmp_path, rows, fedlesam_variant="S", optim_args="momentum=0.9")
    trainer.begin_round(_round(model, config={"fedlesam-variant": "S"}))
    with pytest.raises(ValueError, match=r"optimizer: found momentum=0\.9, allowed is none"):
        trainer.train()
    assert _same(model, vit())


class OwnOptimizer(FedLESAMTrainer):
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


def test_an_optimizer_whose_rates_nobody_counts(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """The control would be taken for one of a round in which nothing was learned."""
    model, args = vit(), FedLESAMConfig(**_options(tmp_path, fedlesam_variant="S"))
    trainer = OwnOptimizer(model, args, train_dataset=rows)
    with pytest.raises(ValueError, match="create_optimizer: found one that does not call super's"):
        _run(trainer, _round(model, config={"fedlesam-variant": "S"}))
    assert _same(model, vit())
    base = OwnOptimizer(vit(), FedLESAMConfig(**_options(tmp_path)), train_dataset=rows)
    assert _run(base, _round(base.model)).memory.keys() == {"received"}


def test_several_gpus_and_shards(
    vit: Callable[..., Any], rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 2))
    with pytest.raises(ValueError, match="FedLESAM: found several GPUs in one process"):
        _trainer(vit(), tmp_path, rows)
    trainer = Plain(vit(), TrainingArguments(**_options(tmp_path)), train_dataset=rows)
    trainer.begin_round(_round(trainer.model, config={"proximal-mu": 0.1}))
    with pytest.raises(ValueError, match="corrections of the gradient: found several GPUs in one process"):
        trainer.train()
    monkeypatch.undo()
    for name, found in (("is_fsdp_enabled", "FSDP1"), ("is_deepspeed_enabled", "DeepSpeed")):
        client = _trainer(vit(), tmp_path, rows)
        setattr(client, name, True)
        with pytest.raises(ValueError, match=f"FedLESAM: found {found}, allowed are weights that are not sharded"):
            client.check_arguments()


@dataclass
class TwiceConfig(FedLESAMArguments, DISAMArguments, TrainingArguments):
    pass


class Twice(FedLESAMMixin, DISAMMixin, Trainer):
    pass


def test_two_methods_that_move_the_weights(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Twice: found FedLESAMMixin, SharpnessMixin, allowed is one that moves"):
        Twice(vit(), TwiceConfig(**_options(tmp_path, disam_lambda=0.0)), train_dataset=rows)


@pytest.mark.parametrize(
    ("settings", "parts", "words"),
    [
        ({}, {"config": {"fedlesam-variant": "S"}}, "variant: found 'base' at client 1, allowed is the server's, 'S'"),
        ({}, {"config": {"fedlesam-source": "server"}}, "source: found 'client' at client 1, allowed is the server's"),
        ({"fedlesam_variant": "D"}, {}, "fedlesam_variant: found 'D' and a server that says nothing of it"),
        ({"fedlesam_source": "server"}, {}, "fedlesam_source: found 'server' and a server that says nothing of it"),
        ({}, {"memory": {"received": {}}}, r"memory: found no '.*', allowed is one of shape"),
        ({}, {"received": {}}, r"received: found no '.*', allowed is one of shape"),
        (
            {"fedlesam_variant": "S"},
            {
                "config": {"fedlesam-variant": "S"},
                "broadcast": {"control": {"vit.embeddings.cls_token": torch.ones(1)}},
            },
            r"control: found 'vit.embeddings.cls_token' of shape \(1,\), allowed is one of shape \(1, 1, 16\)",
        ),
    ],
)
def test_rounds_that_do_not_fit(
    settings: dict[str, Any],
    parts: dict[str, Any],
    words: str,
    vit: Callable[..., Any],
    rows: Dataset,
    tmp_path: Path,
) -> None:
    model = vit()
    trainer = _trainer(model, tmp_path, rows, **settings)
    with pytest.raises(ValueError, match=words):
        _run(trainer, _round(model, **parts))
    assert _same(model, vit())


def test_tensors_of_the_model_itself_are_refused(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """Training would change what the round began with."""
    model = vit()
    trainer = _trainer(model, tmp_path, rows)
    with pytest.raises(ValueError, match="received: found tensors of the model itself, allowed are copies"):
        _run(trainer, _round(model, received=model.state_dict()))


def test_models_that_training_makes_anew_are_refused(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    trainer = FedLESAMTrainer(args=FedLESAMConfig(**_options(tmp_path)), model_init=lambda: vit(), train_dataset=rows)
    with pytest.raises(ValueError, match="model_init: found one, allowed is a model"):
        _run(trainer, _round(trainer.model))


def test_an_earlier_model_that_is_not_finite(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    model = vit()
    earlier = _moved(_weights(model))
    next(iter(earlier.values())).view(-1)[0] = float("nan")
    trainer = _trainer(model, tmp_path, rows)
    with pytest.raises(ValueError, match="global update: found values that are not finite"):
        _run(trainer, _round(model, memory={"received": earlier}))

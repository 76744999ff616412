"""DivBS training in one process: what is selected, what stays untouched, schedules, refusals, other trainers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_ext.adapters import MoLAConfig
from hf_ext.functional import divbs_select, gradient_norms, logit_residuals, sequence_gradients
from hf_ext.trainers import (
    DivBSArguments,
    DivBSConfig,
    DivBSMixin,
    DivBSTrainer,
    MoLAArguments,
    MoLAMixin,
)
from hf_ext.trainers.divbs.rows import without_padding
from hf_ext.trainers.divbs.scoring import find_head

ViTs = Callable[..., Any]


def _arguments(out: Path, kind: type[Any] = DivBSConfig, **extra: Any) -> Any:
    defaults = {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 4}
    own = {"divbs_ratio": 0.25} if issubclass(kind, DivBSArguments) else {}
    return kind(output_dir=str(out), **{**defaults, **quiet, **own, **extra})


def _difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def _logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class _Recorder(DivBSTrainer):
    """Keeps what it was offered and what it trained on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.offered: list[Any] = []
        self.trained: list[Any] = []
        super().__init__(*args, **kwargs)

    def _selected(self, batch: Any, sizes: list[int], micro_step: int) -> Any:
        self.offered.append(batch)
        self.trained.append(super()._selected(batch, sizes, micro_step))
        return self.trained[-1]


def _places(trained: Any, offered: Any, name: str) -> list[int]:
    """Which of the rows on offer these are."""
    same = (trained[name].flatten(1)[:, None] == offered[name].flatten(1)[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


def _tokens(rows: int = 32, length: int = 7, words: int = 30) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, words, rng.integers(3, length + 1)).tolist() for _ in range(rows)]
    padded = [row + [0] * (length - len(row)) for row in ids]
    labels = [row + [-100] * (length - len(row)) for row in ids]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
    return Dataset.from_dict({"input_ids": padded, "labels": labels, "attention_mask": mask}).with_format("torch")


def _gpt2(**config: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 30}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **none, "pad_token_id": 0, **config}))


# ------------------------------------------------------------------------------------------------ neutral
@pytest.mark.parametrize("steps", [1, 2])
def test_ratio_one_is_the_plain_trainer(steps: int, vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    plain, ours = vit(hidden_dropout_prob=0.1), vit(hidden_dropout_prob=0.1)
    extra = {"gradient_accumulation_steps": steps, "optim": "adamw_torch", "learning_rate": 1e-2}
    Trainer(plain, _arguments(tmp_path, TrainingArguments, **extra), train_dataset=data).train()
    trainer = DivBSTrainer(ours, _arguments(tmp_path, divbs_ratio=1.0, **extra), train_dataset=data)
    trainer.train()
    assert _difference(plain, ours) == 0 < _difference(ours, vit(hidden_dropout_prob=0.1))
    assert not _logged(trainer, "selected_fraction")


# ------------------------------------------------------------------------------------------------ selection
@pytest.mark.parametrize("options", [{}, {"divbs_rule": "projection"}, {"divbs_scoring_batch_size": 5}])
def test_what_is_selected(options: dict[str, Any], vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    model = vit()
    trainer = _Recorder(model, _arguments(tmp_path, max_steps=1, **options), train_dataset=data)
    trainer.train()
    (offered,), (trained,) = trainer.offered, trainer.trained
    assert len(offered["labels"]) == 16 and len(trained["labels"]) == 4
    before = vit().eval()
    hidden = before.vit(offered["pixel_values"]).last_hidden_state[:, 0]
    residuals = logit_residuals(before.classifier(hidden), offered["labels"])
    expected = divbs_select(residuals, hidden, 4, rule=options.get("divbs_rule", "residual"))
    assert _places(trained, offered, "pixel_values") == expected.tolist()
    losses = nn.functional.cross_entropy(before.classifier(hidden), offered["labels"], reduction="none")
    logged = trainer.state.log_history[0]
    assert logged["candidate_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert logged["kept_loss"] == pytest.approx(losses[expected].mean().item(), rel=1e-5)
    assert logged["loss"] == pytest.approx(logged["kept_loss"], rel=1e-5)
    assert (logged["selected_fraction"], logged["greedy_fraction"]) == (0.25, 1.0)
    assert 0 < logged["captured_fraction"] < 1


@pytest.mark.parametrize("strategy", ["loss", "grad_norm", "uniform"])
def test_baselines(strategy: str, vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, max_steps=2, divbs_strategy=strategy)
    trainer = _Recorder(vit(), arguments, train_dataset=data)
    trainer.train()
    offered, trained = trainer.offered[0], trainer.trained[0]
    places = _places(trained, offered, "pixel_values")
    assert len(set(places)) == 4
    before = vit().eval()
    hidden = before.vit(offered["pixel_values"]).last_hidden_state[:, 0]
    logits = before.classifier(hidden)
    if strategy == "uniform":
        assert not _logged(trainer, "kept_loss")  # no scoring pass
        assert places != _places(trainer.trained[1], trainer.offered[1], "pixel_values")
        return
    losses = nn.functional.cross_entropy(logits, offered["labels"], reduction="none")
    norms = gradient_norms(logit_residuals(logits, offered["labels"]), hidden)
    assert set(places) == set((losses if strategy == "loss" else norms).topk(4).indices.tolist())


def test_equal_seeds_draw_alike(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    models = [vit() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        arguments = _arguments(tmp_path, divbs_draw="sample", seed=seed, train_sampling_strategy="sequential")
        DivBSTrainer(model, arguments, train_dataset=data).train()
    assert _difference(models[0], models[1]) == 0 < _difference(models[0], models[2])


@pytest.mark.parametrize("kind", ["vit", "gpt2"])
def test_accumulation_leaves_the_update_as_it_is(kind: str, vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    """The rows of two small batches of candidates, trained as one batch or as two."""
    make, rows = (vit, data) if kind == "vit" else (_gpt2, _tokens())
    arguments = _arguments(
        tmp_path, max_steps=1, gradient_accumulation_steps=4, per_device_train_batch_size=2, max_grad_norm=0
    )
    small = _Recorder(make(), arguments, train_dataset=rows)
    small.train()
    parts = small.trained
    assert len(parts) == 4
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    whole = Dataset.from_dict({name: value.tolist() for name, value in joined.items()}).with_format("torch")
    plain = make()
    arguments = _arguments(tmp_path, TrainingArguments, max_steps=1, per_device_train_batch_size=8, max_grad_norm=0)
    Trainer(plain, arguments, train_dataset=whole).train()
    assert _difference(plain, small.model) < 1e-6 < _difference(plain, make())
    assert small.offered[0]["labels"].shape[0] == 8


def test_short_last_batches_and_steps_per_epoch(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, max_steps=-1, num_train_epochs=1, divbs_ratio=0.2)
    trainer = _Recorder(vit(), arguments, train_dataset=data.select(range(43)))
    trainer.train()
    assert [len(batch["labels"]) for batch in trainer.offered] == [20, 20, 3]
    assert [len(batch["labels"]) for batch in trainer.trained] == [4, 4, 1]
    assert trainer.state.global_step == 3


def test_rows_of_both_kinds_are_counted(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    """By epochs Trainer would count the data set, by steps what is trained on."""
    for length in ({"max_steps": -1, "num_train_epochs": 2}, {"max_steps": 6}):
        arguments = _arguments(tmp_path, divbs_ratio=0.2, **length)
        trainer = DivBSTrainer(vit(), arguments, train_dataset=data.select(range(43)))
        trainer.train()
        metrics = trainer.train().metrics  # counted anew
        assert (metrics["train_candidates"], metrics["train_kept"]) == (86, 18)
        assert _logged(trainer, "train_kept") == [18]
        for name, rows in (("candidates", 86), ("kept", 18), ("samples", 18)):
            assert metrics[f"train_{name}_per_second"] == pytest.approx(rows / metrics["train_runtime"], rel=0.1)


def test_nested_inputs_and_lists_are_selected_too(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    class Collator:
        def __call__(self, rows: list[Any]) -> dict[str, Any]:
            batch: dict[str, Any] = {
                name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")
            }
            names = [f"image {row['task_ids']}" for row in rows]
            return {**batch, "names": names, "more": {"tasks": torch.stack([r["task_ids"] for r in rows])}, "scale": 2}

    class Own(_Recorder):
        def _prepare_inputs(self, inputs: Any) -> Any:
            inputs = super()._prepare_inputs(inputs)
            return {name: inputs[name] for name in ("pixel_values", "labels")}

    arguments = _arguments(tmp_path, max_steps=1, remove_unused_columns=False)
    trainer = Own(vit(), arguments, train_dataset=data, data_collator=Collator())
    trainer.train()
    (offered,), (trained,) = trainer.offered, trainer.trained
    places = _places(trained, offered, "pixel_values")
    assert trained["names"] == [offered["names"][place] for place in places]
    assert torch.equal(trained["more"]["tasks"], offered["more"]["tasks"][places])
    assert trained["scale"] == 2


# ------------------------------------------------------------------------------------------------ no trace
@pytest.mark.parametrize("eval_mode", [True, False])
def test_scoring_leaves_no_trace(eval_mode: bool, data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 5}
    model = ResNetForImageClassification(ResNetConfig(**sizes))
    model.resnet.embedder.eval()
    arguments = _arguments(tmp_path, divbs_score_in_eval_mode=eval_mode)
    trainer = DivBSTrainer(model, arguments, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    scores = trainer._score(batch, 16, seed=1)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not scores.losses.requires_grad
    logits = model.eval()(batch["pixel_values"]).logits
    expected = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    assert torch.allclose(scores.losses, expected, atol=1e-5) == eval_mode
    trainer.train()  # the batches trained on count for the statistics, those scored do not
    assert int(model.state_dict()["resnet.embedder.embedder.normalization.num_batches_tracked"]) == 3


def test_an_interrupted_scoring_leaves_no_trace(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    model = vit().train()

    def interrupt(*_: Any) -> None:
        if not model.training:
            raise KeyboardInterrupt

    hook = model.classifier.register_forward_pre_hook(interrupt)
    trainer = DivBSTrainer(model, _arguments(tmp_path), train_dataset=data)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    hook.remove()
    assert all(module.training for module in model.modules())
    assert not model.classifier._forward_hooks


# ------------------------------------------------------------------------------------------------ schedules
def test_schedules(tmp_path: Path) -> None:
    shares = {"divbs_warmup_share": 0.1, "divbs_anneal_share": 0.2}
    constant = _arguments(tmp_path, **shares)
    assert [constant.divbs_ratio_at(step, 10) for step in range(10)] == [1.0, *[0.25] * 7, 1.0, 1.0]
    linear = _arguments(tmp_path, divbs_ratio=0.5, divbs_schedule="linear", divbs_final_ratio=0.1)
    assert [linear.divbs_ratio_at(step, 5) for step in range(5)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    cosine = _arguments(tmp_path, divbs_ratio=0.5, divbs_schedule="cosine", divbs_final_ratio=0.1)
    assert [cosine.divbs_ratio_at(step, 3) for step in range(3)] == pytest.approx([0.5, 0.3, 0.1])


def test_warm_up_and_annealing_train_on_all(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, max_steps=4, divbs_warmup_share=0.25, divbs_anneal_share=0.25)
    trainer = _Recorder(vit(), arguments, train_dataset=data)
    trainer.train()
    assert [len(batch["labels"]) for batch in trainer.trained] == [16, 4, 4, 16]
    assert _logged(trainer, "selected_fraction") == [1.0, 0.25, 0.25, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divbs_ratio": 0.0}, "divbs_ratio: found 0.0"),
        ({"divbs_ratio": 1.5}, "divbs_ratio: found 1.5"),
        ({"divbs_rule": "best"}, "divbs_rule: found 'best', allowed are 'residual', 'projection'"),
        ({"divbs_draw": "best"}, "divbs_draw"),
        ({"divbs_strategy": "random"}, "divbs_strategy"),
        ({"divbs_selection_scope": "node"}, "divbs_selection_scope"),
        ({"divbs_features": "mean"}, "divbs_features"),
        ({"divbs_schedule": "linear"}, "divbs_final_ratio: found None"),
        ({"divbs_schedule": "linear", "divbs_final_ratio": 0.5}, "divbs_final_ratio: found 0.5"),
        ({"divbs_warmup_share": 0.6, "divbs_anneal_share": 0.6}, "divbs_warmup_share"),
        ({"divbs_scoring_batch_size": 0}, "divbs_scoring_batch_size: found 0"),
        (
            {"divbs_scoring_dtype": "int8"},
            "divbs_scoring_dtype: found 'int8', allowed are None, 'bfloat16', 'float16'",
        ),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _arguments(tmp_path, **options)
    assert DivBSArguments().divbs_ratio == 0.1  # parsed alone, without TrainingArguments


# ------------------------------------------------------------------------------------------------ refusals
def test_refusals_before_the_first_step(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    for options, message in (
        ({"divbs_head_module": "vit"}, "divbs_head_module: found 'vit', a ViTModel, allowed is one linear layer"),
        ({"divbs_head_module": "nothing"}, "divbs_head_module: found 'nothing', allowed are modules of"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy: found 'batch_rebalance'"),
    ):
        with pytest.raises(ValueError, match=message):
            DivBSTrainer(vit(), _arguments(tmp_path, **options), train_dataset=data)
    with pytest.raises(ValueError, match="data_collator: found DataCollatorWithFlattening"):
        DivBSTrainer(vit(), _arguments(tmp_path), train_dataset=data, data_collator=DataCollatorWithFlattening())

    class Headless(nn.Module):
        pass

    with pytest.raises(ValueError, match="divbs_head_module: found nothing and no linear classifier"):
        find_head(Headless(), None, "divbs_head_module")


@pytest.mark.parametrize(
    ("name", "plugin", "found"),
    [
        ("fsdp_plugin", SimpleNamespace(fsdp_version=1), "FSDP1"),
        ("deepspeed_plugin", SimpleNamespace(zero_stage=3), "DeepSpeed ZeRO-3"),
    ],
)
def test_models_sharded_by_other_means_are_refused(
    name: str, plugin: Any, found: str, vit: ViTs, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DivBSTrainer(vit(), _arguments(tmp_path), train_dataset=data)
    monkeypatch.setattr(type(trainer.accelerator.state), name, plugin, raising=False)
    with pytest.raises(ValueError, match=f"fsdp, deepspeed: found {found}, allowed are FSDP2 and models that every"):
        trainer.check_arguments()
    monkeypatch.setattr(type(trainer.accelerator.state), name, None)
    trainer.check_arguments()
    DivBSTrainer(vit(), _arguments(tmp_path, divbs_ratio=1.0), train_dataset=data)  # which scores nothing


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda n: {"cu_seq_lens_q": torch.arange(3)}, "cu_seq_lens_q: found packed sequences"),
        (lambda n: {"position_ids": torch.arange(3)[None]}, r"position_ids: found shape \(1, 3\) in a batch of 16"),
        (lambda n: {"names": ["a"]}, r"names: found shape \(1,\) in a batch of 16"),
    ],
)
def test_batches_without_one_sample_per_row_are_refused(
    extra: Any, message: str, vit: ViTs, data: Dataset, tmp_path: Path
) -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")} | extra(
            len(rows)
        )

    arguments = _arguments(tmp_path, divbs_strategy="uniform")
    trainer = DivBSTrainer(vit(), arguments, train_dataset=data, data_collator=collate)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_values_that_are_not_finite_are_refused(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    model = vit()
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the scores of candidates .* not finite in step 1"):
        DivBSTrainer(model, _arguments(tmp_path), train_dataset=data).train()


# ------------------------------------------------------------------------------------------------ kinds of models
def test_heads_are_found() -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    roberta = RobertaForSequenceClassification(RobertaConfig(vocab_size=9, **small))
    assert find_head(roberta, None, "x") is roberta.classifier.out_proj
    gpt2 = _gpt2()
    assert find_head(gpt2, None, "x") is gpt2.lm_head
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=3)
    assert find_head(net, None, "x") is net.fc
    both = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    adapted = get_peft_model(roberta, both)
    assert find_head(adapted, None, "x") is adapted.base_model.model.classifier.modules_to_save["default"].out_proj
    adapted = get_peft_model(
        gpt2, LoraConfig(target_modules=["c_attn"], modules_to_save=["lm_head"], fan_in_fan_out=True)
    )
    assert type(find_head(adapted, None, "x")).__name__ == "ModulesToSaveWrapper"


@pytest.mark.parametrize("features", ["sketch", "pooled", "exact"])
def test_language_models(features: str, tmp_path: Path) -> None:
    """Per-sequence selection, and the loss counts the tokens of the selected sequences alone."""
    arguments = _arguments(tmp_path, max_steps=1, divbs_features=features)
    trainer = _Recorder(_gpt2(), arguments, train_dataset=_tokens())
    trainer.train()
    (offered,), (trained,) = trainer.offered, trainer.trained
    before = _gpt2().eval()
    hidden = before.transformer(offered["input_ids"], attention_mask=offered["attention_mask"]).last_hidden_state
    logits, labels = before.lm_head(hidden)[:, :-1], offered["labels"][:, 1:]
    gradients = sequence_gradients(hidden[:, :-1], logits, labels)
    if features != "pooled":  # the model is narrower than the sketch
        picks = divbs_select(torch.ones(16, 1), gradients, 4)
        assert torch.equal(trained["input_ids"], offered["input_ids"][picks])
    kept = before(**trained).loss.item()
    logged = trainer.state.log_history[0]
    assert logged["kept_loss"] == pytest.approx(kept, rel=1e-5)
    assert logged["candidate_loss"] == pytest.approx(before(**offered).loss.item(), rel=1e-5)
    counted = int(trainer._get_num_items_in_batch([trained], "cpu"))  # as the plain Trainer counts
    assert counted in [int(trained["labels"][:, start:].ne(-100).sum()) for start in (0, 1)]
    assert logged["loss"] == pytest.approx(kept * int(trained["labels"][:, 1:].ne(-100).sum()) / counted, rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_all_selected_rows_is_left_out(side: str, tmp_path: Path) -> None:
    """The last tokens of the longest candidates that are not selected; the loss stays the same."""
    rng = np.random.default_rng(0)
    lengths = [24, *rng.integers(3, 12, 31)]
    ids = [rng.integers(3, 30, length).tolist() for length in lengths]

    def padded(rows: list[list[int]], value: int) -> list[list[int]]:
        rest = [[value] * (24 - len(row)) for row in rows]
        pairs = zip(rows, rest, strict=True)
        return [row + more if side == "right" else more + row for row, more in pairs]

    columns = {"input_ids": padded(ids, 0), "labels": padded(ids, -100)}
    mask = padded([[1] * len(row) for row in ids], 0)
    rows = Dataset.from_dict({**columns, "attention_mask": mask}).with_format("torch")
    arguments = _arguments(tmp_path, max_steps=1, divbs_ratio=0.125, divbs_strategy="uniform")
    trainer = _Recorder(_gpt2(), arguments, train_dataset=rows)
    trainer.train()
    (offered,), (trained,) = trainer.offered, trainer.trained
    assert offered["input_ids"].shape == (32, 24)
    assert 8 < trained["attention_mask"].sum(1).max() <= 16
    width = 16 if side == "right" else 24  # positions count from the left
    assert {value.shape for value in trained.values()} == {(4, width)}
    whole = {name: offered[name][offered["attention_mask"].sum(1) < 24][:4] for name in offered}
    before = _gpt2().eval()
    short = without_padding(whole)
    assert before(**short).loss.item() == pytest.approx(before(**whole).loss.item(), rel=1e-5)


def test_nothing_but_padding_is_left_out() -> None:
    mask = torch.zeros(2, 20)
    mask[:, :3] = 1
    ids = torch.ones(2, 20, dtype=torch.int64)
    labels = ids.masked_fill(mask == 0, -100)
    assert without_padding({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})["labels"].shape == (
        2,
        8,
    )
    for other in (
        {"labels": ids},  # labels where there are no tokens
        {"labels": mask},  # of twenty classes
        {"inputs_embeds": torch.ones(2, 20, 4)},
        {"attention_mask": torch.ones(2, 20)},
        {"attention_mask": mask.view(2, 1, 1, 20)},
    ):
        batch = {"input_ids": ids, "attention_mask": mask.long(), **other}
        assert without_padding(batch) is batch


def test_sequence_classification_by_the_last_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 30, "pad_token_id": 0}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3))
    rows = _tokens()
    rows = rows.remove_columns("labels").add_column("labels", [i % 3 for i in range(32)]).with_format("torch")
    trainer = DivBSTrainer(model, _arguments(tmp_path), train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    scores = trainer._score(batch, 16, seed=0)
    hidden = model.eval().transformer(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    torch.testing.assert_close(scores.features, hidden[torch.arange(16), last])
    trainer.train()


@pytest.mark.parametrize("problem", ["regression", "multi_label", "several numbers"])
def test_other_losses(problem: str, vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    width = 1 if problem == "regression" else 5
    config: dict[str, Any] = {"num_labels": width}
    if problem != "multi_label":
        config["problem_type"] = "regression"
    labels = rng.random(48) if width == 1 else (rng.random((48, 5)) > 0.5)
    columns = {"pixel_values": data["pixel_values"][:].numpy(), "labels": labels.astype("float32")}
    model = vit(**config)
    trainer = DivBSTrainer(model, _arguments(tmp_path), train_dataset=Dataset.from_dict(columns).with_format("torch"))
    batch = next(iter(trainer.get_train_dataloader()))
    scores = trainer._score(batch, 16, seed=0)
    assert scores.mean_loss().item() == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
    model.zero_grad()
    model(**batch).loss.backward()
    gradient = scores.residuals.t() @ scores.features / 16
    torch.testing.assert_close(gradient, model.classifier.weight.grad)
    trainer.train()


def test_encoder_decoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=30, decoder_start_token_id=0, pad_token_id=0, **sizes))
    trainer = DivBSTrainer(model, _arguments(tmp_path), train_dataset=_tokens())
    batch = next(iter(trainer.get_train_dataloader()))
    expected = model.eval()(**batch).loss.item()
    assert trainer._score(batch, 16, seed=0).mean_loss().item() == pytest.approx(expected, rel=1e-5)
    trainer.train()


# ------------------------------------------------------------------------------------------------ with others
@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True, "gradient_checkpointing": True, "max_grad_norm": 0.5, "label_smoothing_factor": 0.1},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"auto_find_batch_size": True, "dataloader_num_workers": 1},
    ],
)
def test_options_of_trainer(options: dict[str, Any], vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    trainer = DivBSTrainer(vit(), _arguments(tmp_path, **options), train_dataset=data)
    trainer.train()
    assert np.isfinite(_logged(trainer, "loss")).all()
    assert _logged(trainer, "selected_fraction") == [0.25] * 3


def test_smaller_batches_after_running_out_of_memory(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    class Small(_Recorder):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Tensor:
            if len(inputs["labels"]) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args)

    trainer = Small(vit(), _arguments(tmp_path, auto_find_batch_size=True), train_dataset=data)
    trainer.train()
    assert [len(batch["labels"]) for batch in trainer.offered[-3:]] == [8, 8, 8]
    assert [len(batch["labels"]) for batch in trainer.trained[-3:]] == [2, 2, 2]


def test_streamed_data(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    def rows() -> Any:
        yield from data

    trainer = _Recorder(vit(), _arguments(tmp_path), train_dataset=IterableDataset.from_generator(rows))
    trainer.train()
    assert [len(batch["labels"]) for batch in trainer.trained] == [4, 4, 4]


def test_lora(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(vit(), LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
    trainer = DivBSTrainer(model, _arguments(tmp_path), train_dataset=data, eval_dataset=data)
    trainer.train()
    assert 0 < _logged(trainer, "captured_fraction")[0] < 1
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(finetuned_from="me/vit")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft" and "PeftModel.from_pretrained(base, " in card.text


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_with_a_mola_adapter(order: str, vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    @dataclass
    class Config(DivBSArguments, MoLAArguments, TrainingArguments):
        pass

    mixins = (DivBSMixin, MoLAMixin) if order == "ours first" else (MoLAMixin, DivBSMixin)
    kind: Any = type("Both", (*mixins, Trainer), {})
    adapter = {"target_modules": ["q_proj", "fc1"], "num_experts": 3, "r": 2, "modules_to_save": ["classifier"]}
    weights: list[Tensor] = []
    for routing, reduction in (("task", "sample"), ("router", "sum")):
        model = get_peft_model(vit(), MoLAConfig(**adapter, routing=routing, init_weights=False))
        arguments = _arguments(tmp_path, Config, mola_task_reduction=reduction, eval_strategy="steps", eval_steps=1)
        trainer = kind(model, arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        assert _logged(trainer, "selected_fraction") == [0.25] * 3
        assert len(_logged(trainer, "twd_loss")) == (3 if routing == "router" else 0)
        batch = next(iter(trainer.get_train_dataloader()))
        scores = trainer._score(batch, 16, seed=0)
        logits = model.eval()(batch["pixel_values"], mola_task_ids=batch["task_ids"]).logits
        expected = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        torch.testing.assert_close(scores.losses, expected.detach())
        weights.append(scores.losses)
    assert not torch.equal(*weights)


@pytest.mark.parametrize("lora", [False, True])
def test_sft_trainer(lora: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")

    @dataclass
    class Config(DivBSArguments, trl.SFTConfig):
        pass

    class SFT(DivBSMixin, trl.SFTTrainer):
        pass

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=2, pad_token_id=0, **sizes))
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    rng = np.random.default_rng(0)
    rows = Dataset.from_dict({"input_ids": [rng.integers(3, 30, rng.integers(3, 9)).tolist() for _ in range(32)]})
    rows = rows.map(lambda row: {"labels": row["input_ids"]})
    collator = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0)
    extra = {"bf16": False, "max_length": None, "packing": False}
    trainer = SFT(
        model,
        _arguments(tmp_path, Config, dataset_kwargs={"skip_prepare_dataset": True}, **extra),
        train_dataset=rows,
        data_collator=collator,
        processing_class=_tokenizer(),
    )
    trainer.train()
    assert _logged(trainer, "kept_loss") == pytest.approx(_logged(trainer, "loss"), rel=1e-3)
    assert _logged(trainer, "selected_fraction") == [0.25] * 3
    with pytest.raises(ValueError, match=r"packing: found True|padding_free: found True"):
        SFT(
            model,
            _arguments(tmp_path, Config, **{**extra, "packing": True, "max_length": 8}),
            train_dataset=rows,
            processing_class=_tokenizer(),
        )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Words(WordLevel({"[PAD]": 0, "[UNK]": 1, "[EOS]": 2}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")


# ------------------------------------------------------------------------------------------------ cards and resuming
def test_the_card_of_a_trained_model(vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    trainer = DivBSTrainer(vit(), _arguments(tmp_path / "mine"), train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.library_name == "transformers"
    assert 'AutoModelForImageClassification.from_pretrained("./mine")' in card.text
    assert "| divbs_ratio | 0.25 |" in card.text and "| loss |" in card.text and "kept_loss" not in card.text


@pytest.mark.parametrize("eval_mode", [True, False])
def test_a_resumed_run_goes_on_bit_for_bit(eval_mode: bool, vit: ViTs, data: Dataset, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    options = {
        "max_steps": 5,
        "divbs_draw": "sample",
        "divbs_score_in_eval_mode": eval_mode,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
    }
    models = [vit(hidden_dropout_prob=0.1) for _ in range(3)]
    DivBSTrainer(models[0], _arguments(tmp_path / "whole", **options), train_dataset=data).train()
    stopped = DivBSTrainer(
        models[1], _arguments(tmp_path / "parts", **options), train_dataset=data, callbacks=[Stop()]
    )
    stopped.train()
    resumed = DivBSTrainer(models[2], _arguments(tmp_path / "parts", **options), train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    assert _difference(models[0], models[2]) == 0 < _difference(models[0], models[1])
    assert math.isfinite(_logged(resumed, "loss")[-1])

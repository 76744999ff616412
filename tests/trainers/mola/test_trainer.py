"""MoLA training in one process: columns, losses, evaluation, refusals, other trainers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from packaging import version
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification, EvalPrediction, Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

from hf_ext.adapters import MoLAConfig
from hf_ext.functional import twd_loss
from hf_ext.trainers import MoLAArguments, MoLAMixin, MoLATrainer, MoLATrainingConfig


def _adapted(model: torch.nn.Module, **config: Any) -> PeftModel:
    defaults = {"target_modules": ["q_proj", "fc1"], "num_experts": 3, "r": 2, "modules_to_save": ["classifier"]}
    return get_peft_model(model, MoLAConfig(**{**defaults, **config}))


def _arguments(out: Path, **extra: Any) -> MoLATrainingConfig:
    defaults = {"max_steps": 4, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return MoLATrainingConfig(output_dir=str(out), **{**defaults, **quiet, **extra})


def _difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


# ------------------------------------------------------------------------------------------------ training
def test_it_is_the_plain_trainer_with_ids(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """With task routing and the default reduction nothing but the ids is added: the weights are bit for bit equal."""
    plain, mola = _adapted(vit()), _adapted(vit())
    arguments = TrainingArguments(**_plain(_arguments(tmp_path, remove_unused_columns=False)))
    Trainer(plain, arguments, train_dataset=data.rename_column("task_ids", "mola_task_ids")).train()
    MoLATrainer(mola, _arguments(tmp_path), train_dataset=data).train()
    assert _difference(plain, mola) == 0
    assert _difference(mola, _adapted(vit())) > 0


def _plain(arguments: MoLATrainingConfig) -> dict[str, Any]:
    names = ("output_dir", "max_steps", "learning_rate", "optim", "logging_steps", "save_strategy", "use_cpu")
    more = ("disable_tqdm", "report_to", "per_device_train_batch_size", "remove_unused_columns")
    return {name: getattr(arguments, name) for name in (*names, *more)}


@pytest.mark.parametrize("reduction", ["sample", "sum"])
def test_accumulation_leaves_the_update_as_it_is(
    reduction: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    models = [_adapted(vit()), _adapted(vit())]
    for model, (batch, steps) in zip(models, [(8, 1), (2, 4)], strict=True):
        arguments = _arguments(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            mola_task_reduction=reduction,
        )
        MoLATrainer(model, arguments, train_dataset=data).train()
    assert _difference(*models) < 1e-6
    assert _difference(models[0], _adapted(vit())) > 1e-3


def test_sum_weighs_tasks_alike(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """One step of SGD over the whole data set follows the gradient of the sum of the tasks' mean losses."""
    trained, reference = _adapted(vit()), _adapted(vit())
    arguments = _arguments(
        tmp_path, max_steps=1, per_device_train_batch_size=48, mola_task_reduction="sum", max_grad_norm=0
    )
    trainer = MoLATrainer(trained, arguments, train_dataset=data)
    trainer.train()
    rows = data[:]
    logits = reference(pixel_values=rows["pixel_values"], mola_task_ids=rows["task_ids"]).logits
    losses = torch.nn.functional.cross_entropy(logits, rows["labels"], reduction="none")
    loss = sum(losses[rows["task_ids"] == task].mean() for task in range(3))
    loss.backward()
    for before, after in zip(reference.parameters(), trained.parameters(), strict=True):
        if before.requires_grad:
            assert torch.allclose(after, before - 0.1 * before.grad, atol=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_twd_is_added_and_logged(steps: int, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    config = {
        "routing": "router",
        "twd_weight": 0.5,
        "twd_temperature": 0.7,
        "router": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
    }
    torch.manual_seed(0)
    model = _adapted(vit(), **config)
    batch = 48 // steps
    arguments = _arguments(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        train_sampling_strategy="sequential",
    )
    rows = data[:]
    expected_twd, expected_loss = [], []
    model.train()
    for start in range(0, 48, batch):
        part = {name: value[start : start + batch] for name, value in rows.items()}
        output = model(pixel_values=part["pixel_values"], labels=part["labels"], mola_task_ids=part["task_ids"])
        features = model.routing.projected["default"]
        expected_twd.append(twd_loss(features, part["task_ids"], temperature=0.7).item())
        expected_loss.append(output.loss.item())
    trainer = MoLATrainer(model, arguments, train_dataset=data)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["twd_loss"] == pytest.approx(np.mean(expected_twd), rel=1e-4)
    assert logged["loss"] == pytest.approx(np.mean(expected_loss) + 0.5 * np.mean(expected_twd), rel=1e-4)


def test_options_of_trainer(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """bf16 autocast, gradient checkpointing, clipping and label smoothing with a router, all at once."""
    model = _adapted(vit(), routing="router")
    arguments = _arguments(
        tmp_path, bf16=True, activation_checkpointing=True, max_grad_norm=0.5, label_smoothing_factor=0.1
    )
    trainer = MoLATrainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert "twd_loss" in trainer.state.log_history[0]
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_streamed_data(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    def rows() -> Any:
        yield from data

    MoLATrainer(_adapted(vit()), _arguments(tmp_path), train_dataset=IterableDataset.from_generator(rows)).train()

    def rows_without_ids() -> Any:
        yield from data.remove_columns("task_ids")

    streamed = IterableDataset.from_generator(rows_without_ids)
    for routing in ("task", "router"):
        trainer = MoLATrainer(_adapted(vit(), routing=routing), _arguments(tmp_path), train_dataset=streamed)
        with pytest.raises(ValueError, match="mola_task_column: found no 'task_ids' in a batch"):
            trainer.train()


# ------------------------------------------------------------------------------------------------ evaluation
def test_routing_table_and_task_metrics(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    model = _adapted(vit(), routing="router", init_weights=False)
    arguments = _arguments(tmp_path, per_device_eval_batch_size=10)
    trainer = MoLATrainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=_accuracy)
    metrics = trainer.evaluate()
    rows = data[:]
    model.eval()
    with torch.no_grad():
        model(pixel_values=rows["pixel_values"])
    weights = model.routing.weights["default"]
    for task in range(3):
        expected = weights[rows["task_ids"] == task].mean(0)
        assert trainer.routing_table[task] == pytest.approx(expected.numpy(), abs=1e-5)
        assert metrics[f"eval_routing_task_{task}_expert_1"] == pytest.approx(expected[1].item(), abs=1e-5)
        assert f"eval_task_{task}_accuracy" in metrics
    assert "twd_loss" not in metrics


def test_a_router_needs_no_ids_in_evaluation(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = MoLATrainer(
        _adapted(vit(), routing="router"), _arguments(tmp_path), train_dataset=data, compute_metrics=_accuracy
    )
    metrics = trainer.evaluate(data.remove_columns("task_ids"))
    assert "eval_accuracy" in metrics
    assert not [name for name in metrics if "task" in name]


def test_ids_that_the_user_set_hold_for_data_without_ids(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    model = _adapted(vit(), init_weights=False)
    trainer = MoLATrainer(model, _arguments(tmp_path), train_dataset=data)
    plain = data.remove_columns("task_ids")
    with pytest.raises(ValueError, match="mola_task_ids: found None"):
        trainer.predict(plain)
    with model.set_task(2):
        predicted = trainer.predict(plain).predictions
    rows = plain.add_column("task_ids", [2] * len(data)).with_format("torch")
    assert np.array_equal(predicted, trainer.predict(rows).predictions)


def test_per_task_heads_train(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    model = _adapted(vit(), task_heads=["classifier"], modules_to_save=None)
    MoLATrainer(model, _arguments(tmp_path), train_dataset=data).train()
    heads = model.base_model.model.classifier.mola_head_weight["default"]
    assert not torch.equal(heads[0], heads[1])


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("config", "arguments", "change", "message"),
    [
        ({}, {}, lambda d: d.remove_columns("task_ids"), "found no column 'task_ids' in train_dataset"),
        ({"routing": "router"}, {}, lambda d: d.remove_columns("task_ids"), "found no column 'task_ids'"),
        ({"num_experts": 2}, {}, None, r"task_ids: found ids from 0 to 2 .* allowed are 0 to 1 \(num_experts=2"),
        ({}, {"mola_task_column": "domain"}, None, "found no column 'domain'"),
        ({}, {"mola_task_column": "pixel_values"}, None, "pixel_values: found"),
        ({}, {"mola_task_reduction": "sum", "label_smoothing_factor": 0.1}, None, "found 'sum' with label_smoothing"),
    ],
)
def test_refusals_before_the_first_step(
    config: dict[str, Any],
    arguments: dict[str, Any],
    change: Callable[[Dataset], Dataset] | None,
    message: str,
    vit: Callable[..., Any],
    data: Dataset,
    tmp_path: Path,
) -> None:
    rows = change(data) if change else data
    with pytest.raises(ValueError, match=message):
        MoLATrainer(_adapted(vit(), **config), _arguments(tmp_path, **arguments), train_dataset=rows)


def test_a_router_is_in_one_model_of_a_process(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DataParallel's threads have routings of their own, of which the process sees none."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 2))
    with pytest.raises(ValueError, match="routing: found 'router' with several GPUs in one process"):
        MoLATrainer(_adapted(vit(), routing="router"), _arguments(tmp_path), train_dataset=data)
    MoLATrainer(_adapted(vit()), _arguments(tmp_path), train_dataset=data)


def test_unknown_reduction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mola_task_reduction: found 'mean', allowed are 'sample', 'sum'"):
        _arguments(tmp_path, mola_task_reduction="mean")
    assert MoLAArguments().mola_task_column == "task_ids"  # parsed alone, without TrainingArguments


def test_a_model_without_mola_is_refused(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    for model in (vit(), get_peft_model(vit(), LoraConfig(target_modules=["q_proj"]))):
        with pytest.raises(ValueError, match=r"found a \w+ with 0 active MoLA adapters"):
            MoLATrainer(model, _arguments(tmp_path), train_dataset=data)


# ------------------------------------------------------------------------------------------------ saving
def test_saved_model_and_card(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "base")
    model = _adapted(AutoModelForImageClassification.from_pretrained(tmp_path / "base"))
    arguments = _arguments(tmp_path / "out")
    trainer = MoLATrainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=_accuracy)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(model_name="mine")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "not the MoLA of Gao et al." in card.text
    assert card.data.library_name == "peft"
    reported = {(result.dataset_config, result.metric_type) for result in card.data.eval_results}
    whole = {(None, "loss"), (None, "accuracy"), (None, "worst_task_accuracy")}
    assert reported == whole | {(f"task {task}", "accuracy") for task in range(3)}
    assert card.data.pipeline_tag == "image-classification"
    assert "| training_steps | 4 |" in card.text
    trainer.save_model()  # peft updates the card and leaves the text
    assert "not the MoLA of Gao et al." in ModelCard.load(tmp_path / "out" / "README.md").text
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    rows = data[:8]
    inputs = {"pixel_values": rows["pixel_values"], "mola_task_ids": rows["task_ids"]}
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.skipif(
    version.parse(peft.__version__) < version.parse(MIN_PEFT_VERSION),
    reason=f"this transformers adds adapters itself with peft {MIN_PEFT_VERSION} only",
)
def test_native_adapters_train_too(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """A model whose adapter was added by transformers itself, without PeftModel."""
    model = vit()
    model.add_adapter(MoLAConfig(target_modules=["q_proj"], num_experts=3, r=2, routing="router"))
    trainer = MoLATrainer(model, _arguments(tmp_path), train_dataset=data)
    trainer.train()
    assert "twd_loss" in trainer.state.log_history[0]


def test_generation_in_evaluation(tmp_path: Path) -> None:
    """Seq2SeqTrainer hands its inputs to `generate`, which refuses what it does not know."""
    from transformers import (
        GenerationConfig,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        T5Config,
        T5ForConditionalGeneration,
    )

    @dataclass
    class Config(MoLAArguments, Seq2SeqTrainingArguments):
        pass

    class MoLASeq2SeqTrainer(MoLAMixin, Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes))
    model = get_peft_model(t5, MoLAConfig(target_modules=["q", "v"], num_experts=3, r=2, init_weights=False))
    tokens = torch.randint(5, 50, (6, 5))
    rows = Dataset.from_dict({"input_ids": tokens, "labels": tokens[:, :3], "task_ids": [0, 1, 2] * 2})
    arguments = Config(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        max_steps=2,
        save_strategy="no",
        predict_with_generate=True,
        generation_config=GenerationConfig(
            max_new_tokens=3, decoder_start_token_id=0, eos_token_id=None, pad_token_id=0
        ),
    )
    trainer = MoLASeq2SeqTrainer(model, arguments, train_dataset=rows.with_format("torch"))
    trainer.train()
    predicted = trainer.predict(rows.with_format("torch")).predictions
    model.eval()
    for row in range(6):
        with model.set_task(row % 3):
            alone = t5.generate(input_ids=tokens[row : row + 1], generation_config=arguments.generation_config)
        assert predicted[row, :4].tolist() == alone[0].tolist()


# ------------------------------------------------------------------------------------------------ TRL
@pytest.mark.slow
@pytest.mark.parametrize("routing", ["task", "router"])
def test_sft(routing: str, tmp_path: Path) -> None:
    """The mixin in front of TRL's SFTTrainer, whose collator knows nothing of task ids."""
    trl = pytest.importorskip("trl")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    @dataclass
    class Config(MoLAArguments, trl.SFTConfig):
        pass

    class MoLASFTTrainer(MoLAMixin, trl.SFTTrainer):
        pass

    words = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, **sizes))
    rows = Dataset.from_dict({"text": ["a b c d", "e f g h", "a c e"] * 8, "task_ids": [0, 1, 2] * 8})
    config = MoLAConfig(
        target_modules=["q_proj", "v_proj"],
        num_experts=3,
        r=2,
        routing=routing,
        task_type="CAUSAL_LM",
        init_weights=False,
    )
    common = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "report_to": "none", "bf16": False}
    arguments = Config(**common, max_steps=3, logging_steps=1, save_strategy="no", max_length=8)
    adapted = get_peft_model(model, config)
    trainer = MoLASFTTrainer(
        model=adapted, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    before = {name: value.clone() for name, value in adapted.named_parameters() if value.requires_grad}
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in adapted.named_parameters() if name in before)
    assert ("twd_loss" in trainer.state.log_history[0]) == (routing == "router")
    assert "eval_loss" in trainer.evaluate()

    packed = Config(**common, max_steps=3, packing=True, max_length=8)
    with pytest.raises(ValueError, match="packing: found True, allowed is False"):
        MoLASFTTrainer(model=adapted, args=packed, train_dataset=rows, processing_class=tokenizer)

"""Checkpoints: complete ones are resumed from bit for bit, broken ones are refused or passed over by name."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers import trainer as trainer_module

from hf_ext.trainers import (
    DISAMConfig,
    DISAMTrainer,
    DivBSConfig,
    DivBSTrainer,
    MethodMixin,
    TARFConfig,
    TARFTrainer,
)
from hf_ext.trainers.checkpoints import fault_of
from hf_ext.trainers.manifest import MANIFEST, UNFINISHED, files_of, write_manifest

Classifiers = Callable[..., nn.Module]


class Own(MethodMixin, Trainer):
    """With a state of its own."""

    def checkpoint_state(self) -> dict[str, Any]:
        return super().checkpoint_state() | {"step": self.state.global_step, "tensor": torch.arange(3.0)}


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


class Notes(TrainerCallback):
    """Adds a file to every checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "notes.txt").write_text("all is well")


def _arguments(out: Path, **extra: Any) -> TrainingArguments:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "max_steps": 6}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return TrainingArguments(output_dir=str(out), **{"learning_rate": 0.1, **saving, **quiet, **extra})


def _trained(
    model: nn.Module, data: Dataset, out: Path, resume: Any = None, stop: int | None = None, **extra: Any
) -> Trainer:
    callbacks = [Notes()] if stop is None else [Stop(stop), Notes()]
    rows = data.remove_columns("task_ids")
    kind = extra.pop("kind", Own)
    trainer: Trainer = kind(model, _arguments(out, **extra), train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": _flip,
}
FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"),
    *("method_state.json", "method_state.safetensors", "notes.txt"),
)


@pytest.fixture
def interrupted(classifier: Classifiers, data: Dataset, tmp_path: Path) -> Path:
    """Of a run that stopped after four of six steps, with checkpoints 2 and 4."""
    _trained(classifier(), data, tmp_path / "out", stop=4)
    return tmp_path / "out"


@pytest.fixture
def whole(classifier: Classifiers, data: Dataset, tmp_path: Path) -> nn.Module:
    """What a run without interruption makes."""
    model = classifier()
    _trained(model, data, tmp_path / "whole")
    return model


# ------------------------------------------------------------------------------------------------ with a manifest
def test_the_manifest_names_all_files(interrupted: Path) -> None:
    """Also those of callbacks; and nothing in it depends on when it was written."""
    folder = interrupted / "checkpoint-4"
    saved = json.loads((folder / MANIFEST).read_text())
    assert set(saved["files"]) == set(FILES) == set(files_of(folder))
    assert all(entry["bytes"] == (folder / name).stat().st_size for name, entry in saved["files"].items())
    content = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST).read_bytes() == content


@pytest.mark.parametrize("name", FILES)
def test_a_broken_checkpoint_is_refused_or_passed_over(
    name: str, interrupted: Path, whole: nn.Module, classifier: Classifiers, data: Dataset
) -> None:
    newest, older = interrupted / "checkpoint-4", interrupted / "checkpoint-2"
    backup = shutil.copytree(newest, interrupted / "backup")
    for damage, apply in DAMAGES.items():
        shutil.rmtree(newest)
        shutil.copytree(backup, newest)
        apply(newest / name)
        fresh, before = classifier(), classifier()
        with pytest.raises(ValueError) as refused:
            _trained(fresh, data, interrupted, resume=str(newest))
        message = str(refused.value)
        assert message.startswith(f"Can't find a valid checkpoint at {newest}: resume_from_checkpoint: found "), damage
        word = {"flipped": "changed", "emptied": "truncated"}.get(damage, damage)
        assert repr(name) in message and word in message, message
        assert type(refused.value) is ValueError and _equal(fresh, before)
    with pytest.warns(UserWarning, match=f"in checkpoint-4 a changed '{name}' .*; checkpoint-2 is taken instead"):
        _trained(fresh, data, interrupted, resume=True)
    assert _equal(fresh, whole)
    assert older.is_dir() and fault_of(newest) is None  # written anew


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1}', '{"files": {"optimizer.pt": 3}}', '{"version": 1, "files": {}}']
)
def test_a_broken_manifest(content: str, interrupted: Path, classifier: Classifiers, data: Dataset) -> None:
    (interrupted / "checkpoint-4" / MANIFEST).write_text(content)
    word = "empty" if content.endswith("{}}") else "unreadable"
    with pytest.raises(ValueError, match=f"Can't find a valid checkpoint .* found an {word} '{MANIFEST}'"):
        _trained(classifier(), data, interrupted, resume=str(interrupted / "checkpoint-4"))


def test_whole_checkpoints_are_resumed_without_a_word(
    interrupted: Path, whole: nn.Module, classifier: Classifiers, data: Dataset
) -> None:
    """Given as True, text or a path; files that came later do not matter."""
    (interrupted / "checkpoint-4" / "mine.txt").write_text("later")
    kept = shutil.copytree(interrupted, interrupted.with_name("kept"))
    for resume in (True, str(kept / "checkpoint-4"), kept / "checkpoint-4"):
        model = classifier()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="resume_from_checkpoint")
            _trained(model, data, kept, resume=resume)
        assert _equal(model, whole)


def test_nothing_to_resume_from(interrupted: Path, classifier: Classifiers, data: Dataset) -> None:
    for step in (2, 4):
        (interrupted / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"^No valid checkpoint found in output directory .*in checkpoint-4 no 'op"):
        _trained(classifier(), data, interrupted, resume=True)
    with pytest.raises(ValueError, match=r"^No valid checkpoint found in output directory .*no complete checkpoint, "):
        _trained(classifier(), data, interrupted / "none", resume=True)
    with pytest.raises(ValueError, match=r"^Can't find a valid checkpoint at .*nowhere: .* found no such folder"):
        _trained(classifier(), data, interrupted, resume=str(interrupted / "nowhere"))


def test_checksums_can_be_left_out(classifier: Classifiers, data: Dataset, tmp_path: Path) -> None:
    class Quick(Own):
        checkpoint_checksums = False

    _trained(classifier(), data, tmp_path, stop=2, kind=Quick)
    folder = tmp_path / "checkpoint-2"
    assert all(set(entry) == {"bytes"} for entry in json.loads((folder / MANIFEST).read_text())["files"].values())
    _flip(folder / "notes.txt")
    assert fault_of(folder) is None
    (folder / "notes.txt").write_text("more than there was")
    assert fault_of(folder) == "a changed 'notes.txt' (19 bytes, saved were 11)"


# ------------------------------------------------------------------------------------------------ without one
@pytest.fixture
def plain(classifier: Classifiers, data: Dataset, tmp_path: Path) -> Path:
    """The checkpoint of a plain Trainer."""
    _trained(classifier(), data, tmp_path / "out", stop=4, kind=Trainer)
    return tmp_path / "out" / "checkpoint-4"


def test_a_plain_trainers_checkpoint(plain: Path, whole: nn.Module, classifier: Classifiers, data: Dataset) -> None:
    assert MANIFEST not in [path.name for path in plain.iterdir()]
    model = classifier()
    _trained(model, data, plain.parent, resume=True)
    assert _equal(model, whole)


@pytest.mark.parametrize("name", FILES[:5])
def test_what_must_be_there(name: str, plain: Path, classifier: Classifiers, data: Dataset) -> None:
    backup = shutil.copytree(plain, plain.with_name("backup"))
    for damage, apply in DAMAGES.items():
        shutil.rmtree(plain)
        shutil.copytree(backup, plain)
        if damage == "flipped" and name != "optimizer.pt":
            continue  # nothing says what it was
        apply(plain / name)
        if damage == "truncated":
            apply(plain / name)  # the first byte may have been the end of a line
        fault = f"found no '{name}'" if damage == "missing" else f"found an unreadable '{name}'"
        with pytest.raises(ValueError, match=f"^Can't find a valid checkpoint at .*{fault}"):
            _trained(classifier(), data, plain.parent, resume=str(plain))


@pytest.mark.parametrize("content", ["{}", '{"epoch": 1.0}', '{"global_step": "4"}', '{"global_step": null}', "[]"])
def test_a_state_that_names_no_step(content: str, plain: Path) -> None:
    (plain / "trainer_state.json").write_text(content)
    assert "an unreadable 'trainer_state.json'" in str(fault_of(plain))


def test_the_folder_of_checkpoints_is_none(plain: Path, classifier: Classifiers, data: Dataset) -> None:
    with pytest.raises(ValueError, match=r"^Can't find a valid checkpoint at .*found no 'trainer_state.json'"):
        _trained(classifier(), data, plain.parent, resume=str(plain.parent))


def test_a_checkpoint_in_shards(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    _trained(vit(), data, tmp_path, stop=2, kind=Trainer)
    folder = tmp_path / "checkpoint-2"
    (folder / "model.safetensors").unlink()
    vit().save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1 and fault_of(folder) is None
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    assert f"an unreadable {last.name!r}" in str(fault_of(folder))
    last.unlink()
    assert f"an unreadable 'model.safetensors.index.json', which may be truncated (it names {last.name!r}" in str(
        fault_of(folder)
    )
    last.write_bytes(content)
    (folder / UNFINISHED).touch()
    assert "saving was interrupted" in str(fault_of(folder))
    write_manifest(folder)
    assert fault_of(folder) is None


def test_adapters(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    def lora() -> nn.Module:
        torch.manual_seed(1)
        return get_peft_model(vit(), LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))

    model, again = lora(), lora()
    _trained(model, data, tmp_path / "whole")
    _trained(lora(), data, tmp_path / "out", stop=4)
    _trained(again, data, tmp_path / "out", resume=True)
    assert _equal(model, again)
    newest = tmp_path / "out" / "checkpoint-6"
    for change in (lambda readme: readme.write_text("Mine."), lambda readme: readme.unlink()):  # which peft wrote
        change(newest / "README.md")
        assert fault_of(newest) is None
    _flip(newest / "adapter_model.safetensors")
    assert "a changed 'adapter_model.safetensors'" in str(fault_of(newest))
    (newest / MANIFEST).unlink()
    assert fault_of(newest) is None
    (newest / "adapter_model.safetensors").write_bytes(b"")
    assert "an unreadable 'adapter_model.safetensors'" in str(fault_of(newest))


# ------------------------------------------------------------------------------------------------ weights alone
def test_weights_alone_are_resumed_from_with_a_warning(classifier: Classifiers, data: Dataset, tmp_path: Path) -> None:
    _trained(classifier(), data, tmp_path, stop=2, save_only_model=True)
    said = r"without optimizer.pt, scheduler.pt, rng_state.pth \(as save_only_model=True"
    for options in ({}, {"save_only_model": True}):
        out = shutil.copytree(tmp_path, tmp_path / f"again {len(options)}")
        with pytest.warns(UserWarning, match=said):
            assert _trained(classifier(), data, out, resume=True, **options).state.global_step == 6
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"in checkpoint-2 no 'optimizer.pt' .* nobody knows"):
        _trained(classifier(), data, tmp_path, resume=True)
    with pytest.warns(UserWarning, match=said):
        _trained(classifier(), data, tmp_path, resume=True, save_only_model=True)


# ------------------------------------------------------------------------------------------------ interrupted saving
class Killed(Exception):
    pass


def _dies_in(name: str) -> type[Own]:
    """A Trainer that dies in its second checkpoint, when this is called."""

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise Killed
        return getattr(super(kind, self), name)(*args, **kwargs)

    kind = type("Dying", (Own,), {name: die})
    return kind


@pytest.mark.parametrize("place", ["save_model", "_save_scaler", "_save_rng_state", "_complete_saving"])
def test_whenever_saving_is_killed(
    place: str, whole: nn.Module, classifier: Classifiers, data: Dataset, tmp_path: Path
) -> None:
    """Also where the older checkpoint is gone before the new one has its manifest."""
    out, model = tmp_path / "out", classifier()
    with pytest.raises(Killed):
        _trained(classifier(), data, out, kind=_dies_in(place), save_total_limit=1)
    trainer = _trained(model, data, out, resume=True, save_total_limit=1)
    assert _equal(model, whole)
    assert [path.name for path in out.iterdir()] == ["checkpoint-6"]
    assert fault_of(out / "checkpoint-6") is None and trainer.state.global_step == 6


def test_a_checkpoint_that_was_to_be_overwritten(classifier: Classifiers, data: Dataset, tmp_path: Path) -> None:
    """Of two runs into one folder the second is killed in the middle: no mixture of both counts as complete."""
    _trained(classifier(), data, tmp_path, stop=4)
    with pytest.raises(Killed):
        _trained(classifier(), data, tmp_path, kind=_dies_in("_save_optimizer_and_scheduler"), learning_rate=0.2)
    assert "no 'trainer_state.json'" in str(fault_of(tmp_path / "checkpoint-4"))


def test_saving_on_a_signal_has_a_manifest_too(classifier: Classifiers, data: Dataset, tmp_path: Path) -> None:
    """transformers then saves without the callbacks, while a file of its own lies in the folder."""

    class Save(TrainerCallback):
        trainer: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                (tmp_path / "checkpoint-3").mkdir()
                (tmp_path / "checkpoint-3" / UNFINISHED).touch()
                self.trainer._save_checkpoint(self.trainer.model, trial=None)

    rows, save = data.remove_columns("task_ids"), Save()
    trainer = Own(classifier(), _arguments(tmp_path), train_dataset=rows, callbacks=[save])
    save.trainer = trainer
    trainer.train()
    (tmp_path / "checkpoint-3" / UNFINISHED).unlink()
    assert (tmp_path / "checkpoint-3" / MANIFEST).is_file() and fault_of(tmp_path / "checkpoint-3") is None


# ------------------------------------------------------------------------------------------------ the best model
def test_a_broken_best_checkpoint(classifier: Classifiers, data: Dataset, tmp_path: Path) -> None:
    """Said before training where it is known, and else where it is needed."""
    losses = iter([0.1, 0.2, 0.3, 0.3, 0.3, 0.3])

    class Worse(Own):
        breaks = False

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
            return {"eval_loss": next(losses)}

        def _finalize_training(self, *args: Any) -> Any:
            if self.breaks:
                (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"nothing")
            return super()._finalize_training(*args)

    best: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    rows = data.remove_columns("task_ids")

    def make() -> Worse:
        return Worse(classifier(), _arguments(tmp_path, **best), train_dataset=rows, eval_dataset=rows)

    Worse.breaks = True
    said = r"load_best_model_at_end: found a truncated 'model.safetensors' .*checkpoint-2"
    with pytest.raises(ValueError, match=said):
        make().train()
    with pytest.raises(ValueError, match=said):
        make().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    shutil.rmtree(tmp_path / "checkpoint-2")
    Worse.breaks = False
    assert make().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")).global_step == 6


# ------------------------------------------------------------------------------------------------ Trainer's own state
class Dies(TrainerCallback):
    """In the update after step 4, of which there is a checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise Killed


def _state(folder: Path) -> dict[str, Any]:
    """Without what Trainer takes from the clock, and without the name of the output folder."""
    state: dict[str, Any] = json.loads((folder / "trainer_state.json").read_text().replace(str(folder.parent), ""))
    for entry in state["log_history"]:
        for name in [name for name in entry if name.endswith(("_runtime", "_per_second"))]:
            del entry[name]
    return state


METHODS: dict[str, tuple[type[Trainer], type[TrainingArguments], dict[str, Any]]] = {
    "divbs": (DivBSTrainer, DivBSConfig, {"divbs_ratio": 0.5, "divbs_draw": "sample"}),
    "disam": (DISAMTrainer, DISAMConfig, {"disam_domain_weights": "running", "disam_domain_column": "task_ids"}),
    "tarf": (TARFTrainer, TARFConfig, {"tarf_k": 0.01, "tarf_t1": 0.0, "tarf_selection": "none"}),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_state_of_a_resumed_run_is_that_of_a_whole_one(
    method: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with all callbacks' states restored, about which Trainer has nothing to say."""
    warned: list[str] = []
    monkeypatch.setattr(trainer_module.logger, "warning", lambda text, *rest: warned.append(text))
    kind, config, options = METHODS[method]
    evaluates = {"eval_strategy": "steps", "eval_steps": 2, "restore_callback_states_from_checkpoint": True}
    parts: dict[str, Any] = {"train_dataset": data, "eval_dataset": data.select(range(8))}
    if method == "tarf":
        parts["forget_dataset"] = data.select(range(8))
    metrics = []
    for name, resume, callbacks in (("whole", None, []), ("out", None, [Dies()]), ("out", True, [])):
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 2, "max_steps": 6}
        quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 4}
        args: Any = config(output_dir=str(tmp_path / name), **{**saving, **quiet, **evaluates, **options})
        trainer = kind(vit(), args, callbacks=callbacks, **parts)
        if callbacks:
            with pytest.raises(Killed):
                trainer.train()
        else:
            metrics.append(trainer.train(resume_from_checkpoint=resume).metrics)
    assert _state(tmp_path / "whole" / "checkpoint-6") == _state(tmp_path / "out" / "checkpoint-6")
    assert not [text for text in warned if "callback" in text]
    counted = [[run[name] for name in ("train_candidates", "train_kept") if name in run] for run in metrics]
    assert counted[0] == counted[1] == ([48, 24] if method == "divbs" else [])

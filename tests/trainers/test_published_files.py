"""What a Trainer writes into its folder when it publishes a checkpoint."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_ext.trainers import DivBSConfig, DivBSTrainer


def test_no_link_is_followed(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    args = DivBSConfig(str(out), use_cpu=True, report_to="none", hub_strategy="every_save")
    trainer = DivBSTrainer(vit(), args, train_dataset=data)
    trainer.push_in_progress = None  # as where the repo was made
    trainer.model.save_pretrained(tmp_path / "checkpoint-1")
    elsewhere.write_text("theirs")
    out.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (out / name).symlink_to(elsewhere)
    sent: list[Any] = []

    def run(api: Any, push: Any) -> Future[None]:
        sent.append(push)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr("hf_ext.trainers.cards.HfApi.run_as_future", run)
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert len(sent) == 1 and elsewhere.read_text() == "theirs"
    for name in ("config.json", "model.safetensors"):
        assert not (out / name).is_symlink()
        assert (out / name).read_bytes() == (tmp_path / "checkpoint-1" / name).read_bytes()

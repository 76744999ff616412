"""The folder of an exported LoRA: never another model's, never half old and half new."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig
from hf_ext.hub_cards import create_card

FILES = {"adapter_config.json", "adapter_model.safetensors", "hf_ext_card.json"}


class _Base(nn.Module):
    """Small, and able to save itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self.state_dict(), folder / "weights.pt")
        (folder / "config.json").write_text(json.dumps({"of": self.layer.weight.sum().item()}))


def _mixture(**config: Any) -> Any:
    torch.manual_seed(1)
    options = {"target_modules": ["layer"], "num_experts": 3, "r": 2, "init_weights": False, **config}
    return get_peft_model(_Base(), MoLAConfig(**options))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _loads(folder: Path) -> Tensor | None:
    """What an adapter gives; None if nobody can load it."""
    try:
        return PeftModel.from_pretrained(_Base(), folder)(torch.ones(1, 4)).detach()
    except (OSError, ValueError):
        return None


def _expert(model: Any, task: int) -> Tensor:
    return model(torch.ones(1, 4), mola_task_ids=torch.tensor([task])).detach()


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "plain": str,
    "with a detour": lambda folder: f"{folder}/../{folder.name}/.",
    "relative": lambda folder: os.path.relpath(folder),
    "a link": lambda folder: str(folder.with_name("link")),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_mixtures_own_folder_is_refused(spelling: str, tmp_path: Path) -> None:
    folder = tmp_path / "mixture"
    model = _mixture()
    model.save_pretrained(folder)
    (tmp_path / "link").symlink_to(folder)
    before = _content(tmp_path)
    with pytest.raises(ValueError, match=r"^folder: found .adapter_.* no earlier export, allowed is a new"):
        model.export_lora(1, SPELLINGS[spelling](folder))
    create_card(folder)  # whose facts are no export's
    before |= _content(tmp_path)
    with pytest.raises(ValueError, match="no earlier export"):
        model.export_lora(1, SPELLINGS[spelling](folder))
    assert _content(tmp_path) == before


def _lora(folder: Path) -> None:
    get_peft_model(_Base(), LoraConfig(target_modules=["layer"])).save_pretrained(folder)


def _retrained(folder: Path) -> None:
    _mixture().export_lora(0, folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"mine")


#: what lies in a folder already
OTHERS: dict[str, Callable[[Path], Any]] = {
    "a lora": _lora,
    "an export that was trained on": _retrained,
    "a model": lambda folder: (folder / "config.json").write_text("{}"),
    "weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "a pickle": lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
    "a base model": lambda folder: (folder / "base_model").mkdir() or (folder / "base_model" / "a").write_text("a"),
    "a link to a base model": lambda folder: (folder / "base_model").symlink_to("/"),
    "a dangling link": lambda folder: (folder / "adapter_config.json").symlink_to("nothing"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_folder_of_another_model_is_refused(other: str, tmp_path: Path) -> None:
    OTHERS[other](tmp_path)
    before, links = _content(tmp_path), [path for path in tmp_path.iterdir() if path.is_symlink()]
    with pytest.raises(ValueError, match=r"^folder: found .*no earlier export"):
        _mixture().export_lora(1, tmp_path)
    assert _content(tmp_path) == before and [path for path in tmp_path.iterdir() if path.is_symlink()] == links


def test_what_else_lies_there_stays(tmp_path: Path) -> None:
    model = _mixture()
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "notes.txt").write_text("mine")
    model.export_lora(0, tmp_path)
    model.export_lora(2, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "README.md", "notes.txt"}
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert torch.equal(_loads(tmp_path), _expert(model, 2))  # type: ignore[arg-type]


def test_a_card_does_not_make_it_anothers(tmp_path: Path) -> None:
    model = _mixture()
    model.export_lora(0, tmp_path)
    create_card(tmp_path)
    model.export_lora(1, tmp_path)
    assert "This is expert 1" in (create_card(tmp_path).note)
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("backbone", [False, True], ids=["adapter", "backbone"])
def test_killed_at_any_write_there_is_no_mixture_of_two(
    backbone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _mixture(train_backbone=backbone), _mixture(train_backbone=backbone, r=1)
    with torch.no_grad():
        new.get_base_model().layer.get_base_layer().weight.add_(1 if backbone else 0)
    replace, survived = os.replace, 0
    for last in range(20):
        folder = tmp_path / str(last)
        old.export_lora(0, folder)
        before = load_file(folder / "adapter_model.safetensors")
        config = (folder / "adapter_config.json").read_bytes()
        with monkeypatch.context() as patch:
            count = iter(range(100))

            def dying(*args: Any, count: Any = count, last: int = last) -> None:
                if next(count) == last:
                    raise KeyboardInterrupt
                replace(*args)

            patch.setattr(os, "replace", dying)
            try:
                new.export_lora(1, folder)
                survived = last
                break
            except KeyboardInterrupt:
                pass
        if _loads(folder) is not None and (folder / "adapter_config.json").read_bytes() == config:
            now = load_file(folder / "adapter_model.safetensors")
            assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
            assert last == 0  # later there is none
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        new.export_lora(1, folder)
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 1
    assert survived == (6 if backbone else 4)  # facts, weights, two files of the base model, configuration, facts
    if backbone:
        written = json.loads((tmp_path / "0" / "base_model" / "config.json").read_text())
        assert written["of"] == pytest.approx(new.get_base_model().layer.get_base_layer().weight.sum().item())

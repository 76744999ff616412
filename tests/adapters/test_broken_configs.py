"""Configurations of adapters that are no configurations: one clear error, and the model as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

import hf_ext  # noqa: F401 (registers)

BROKEN = {
    "no JSON": (b"{", "found a broken"),
    "empty": (b"", "found a broken"),
    "a list": (b"[1]", "found a list"),
    "a byte order mark": (b"\xef\xbb\xbf" + b'{"peft_type": "LORA"}', "found a broken"),
    "no UTF-8": (b'{"peft_type": "\xff"}', "found a broken"),
    "deep": (b'{"peft_type": "LORA", "r": ' + b"[" * 5000 + b"]" * 5000 + b"}", "found a broken"),
    "unknown type": (b'{"peft_type": "LORRA"}', "found the peft_type 'LORRA'"),
    "a type that is a list": (b'{"peft_type": ["LORA"]}', r"found the peft_type \['LORA'\]"),
}
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "PeftModel": lambda model, folder: PeftModel.from_pretrained(model.get_base_model(), folder),
    "load_adapter": lambda model, folder: model.load_adapter(folder, "other"),
    "PeftConfig": lambda model, folder: PeftConfig.from_pretrained(folder),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("content", BROKEN)
def test_it_is_said_which_file_is_broken(content: str, call: str, tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"], init_lora_weights=False))
    x, (written, message) = torch.ones(1, 2), BROKEN[content]
    before = model(x)
    (tmp_path / "adapter_config.json").write_bytes(written)
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}") as error:
        CALLS[call](model, str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert torch.equal(model(x), before) and list(model.peft_config) == ["default"]


def test_a_type_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    with pytest.raises(ValueError, match=r"adapter_config\.json: found no peft_type"):
        PeftModel.from_pretrained(nn.Sequential(nn.Linear(2, 2)), str(tmp_path))

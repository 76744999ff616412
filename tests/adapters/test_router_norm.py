"""An image router with BatchNorm, the default, and one whose weights for an image do not depend on the batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola import ImageRouter


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_only_batch_norm_looks_at_the_batch(norm: Any) -> None:
    torch.manual_seed(0)
    router, images = ImageRouter(1, 3, norm=norm).double(), torch.randn(6, 1, 8, 8).double()
    whole, parts = router(images), torch.cat([router(part) for part in images.split([4, 2])])
    assert torch.allclose(whole, parts, atol=1e-12) is (norm == "layer")
    assert any(isinstance(module, nn.BatchNorm2d) for module in router.modules()) is (norm == "batch")
    whole.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in router.parameters())


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_saved_adapters_load(norm: Any, tmp_path: Path, vit: Any) -> None:
    options = {"target_modules": vit.targets, "num_experts": 3, "init_weights": False}
    model = get_peft_model(vit.model(), MoLAConfig(**options, routing="router", router_norm=norm)).eval()
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    assert written.pop("router_norm") == norm
    if norm == "batch":  # as adapters were written before there was a choice
        path.write_text(json.dumps(written))
    loaded = PeftModel.from_pretrained(vit.model(), str(tmp_path)).eval()
    assert loaded.peft_config["default"].router_norm == norm
    assert torch.equal(model(**vit.inputs).logits, loaded(**vit.inputs).logits)


def test_other_routers_have_no_such_choice(named: Callable[[str], Any]) -> None:
    model = named("gpt2").model()
    for router, found in (("text", "router='text'"), (nn.Flatten(), "a router of your own")):
        config = MoLAConfig(target_modules=["c_attn"], num_experts=3, routing="router", router=router)
        config.router_norm = "layer"
        with pytest.raises(ValueError, match=f"router_norm: found 'layer' with {found}, allowed is 'batch'"):
            get_peft_model(model, config)

"""What of a model travels, and how it comes back."""

import numpy as np
import pytest
import torch
from federation import tiny_vit
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_ext.trainers.federated.records import fault_in, from_record, layout_of, restored, to_record
from hf_ext.trainers.federated.travelling import load_tensors, travelling_tensors


class WithNorm(nn.Module):
    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=affine))
        self.head = nn.Linear(4, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


NORM_BUFFERS = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}


def test_all_parameters_and_persistent_buffers_of_a_model_travel() -> None:
    model = WithNorm()
    assert set(travelling_tensors(model)) == set(model.state_dict())
    assert travelling_tensors(model)["head.weight"] is model.head.weight


def test_statistics_travel_with_what_is_trained_around_them() -> None:
    frozen = WithNorm()
    frozen.body.requires_grad_(False)
    assert set(travelling_tensors(frozen)) == {"head.weight", "head.bias"}
    assert set(travelling_tensors(WithNorm(affine=False))) >= NORM_BUFFERS


def test_of_a_peft_model_the_adapter_alone_travels() -> None:
    model = get_peft_model(tiny_vit(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))
    names = set(travelling_tensors(model))
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in names)


def test_tied_weights_travel_once() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8))
    tensors = travelling_tensors(model)
    assert [name for name in tensors if name in ("transformer.wte.weight", "lm_head.weight")] == [
        "transformer.wte.weight"
    ]
    load_tensors(model, {name: torch.ones_like(tensor) for name, tensor in tensors.items()})
    assert torch.equal(model.lm_head.weight, torch.ones_like(model.lm_head.weight))


def test_buffers_that_are_the_same_everywhere_stay_at_home() -> None:
    model = WithNorm()
    model.body[1].stays_home = ("running_mean",)
    assert "body.1.running_mean" not in travelling_tensors(model)
    assert "body.1.running_var" in travelling_tensors(model)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="model: found no trainable parameters"):
        travelling_tensors(WithNorm().requires_grad_(False))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_every_dtype_comes_back_from_a_mean(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).mul(3).to(dtype)
    record = to_record({"x": tensor})
    layout = layout_of(record)
    replies = [
        RecordDict({"arrays": to_record({"x": tensor}), "metrics": MetricRecord({"num-examples": size})})
        for size in (1, 3)
    ]
    mean = restored(aggregate_arrayrecords(replies, "num-examples"), layout)
    assert layout_of(mean) == layout
    back = from_record(mean, {"x": tensor}, "the model")["x"]
    assert back.dtype == dtype and back.shape == tensor.shape
    assert torch.equal(back, tensor)  # quarters and their sums are exact


def test_means_of_integers_are_rounded() -> None:
    layout = layout_of(to_record({"n": torch.tensor(0)}))
    assert restored(ArrayRecord({"n": Array(np.array(2.6))}), layout)["n"].numpy() == 3


def array(values: object, dtype: str = "float32") -> Array:
    return Array(np.array(values, dtype=dtype))


GOOD = {"a": array([[1.0, 2.0]]), "b": array(3.0)}
LIAR = Array(dtype="float32", shape=(1, 2), stype="numpy.ndarray", data=array(5.0).data)
LONG = Array(dtype="float32", shape=(1, 2), stype="numpy.ndarray", data=array(np.zeros(10**6)).data)
TEXT = Array(dtype="float32", shape=(1, 2), stype="numpy.ndarray", data=b"no array at all")
OTHER = Array(dtype="float32", shape=(1, 2), stype="torch", data=GOOD["a"].data)


def pickled() -> Array:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([[1.0, None]], dtype=object), allow_pickle=True)
    return Array(dtype="float32", shape=(1, 2), stype="numpy.ndarray", data=buffer.getvalue())


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        (GOOD, None),
        ({"a": GOOD["a"]}, "no tensor 'b'"),
        ({**GOOD, "c": GOOD["b"]}, "an unknown tensor 'c'"),
        ({**GOOD, "a": array([1.0, 2.0])}, "tensor 'a' of shape 2, allowed is 1x2"),
        ({**GOOD, "a": array([[1.0, 2.0]], "float64")}, "tensor 'a' of float64, allowed is float32"),
        ({**GOOD, "a": array([["x", "y"]], "U1")}, "tensor 'a' of <U1"),
        ({**GOOD, "b": array(float("nan"))}, "tensor 'b' with values that are not finite"),
        ({**GOOD, "b": array(float("-inf"))}, "tensor 'b' with values that are not finite"),
        ({**GOOD, "a": LIAR}, "tensor 'a' that says float32 of shape 1x2 and holds something else"),
        ({**GOOD, "a": LONG}, "tensor 'a' of .* bytes"),
        ({**GOOD, "a": TEXT}, "tensor 'a' that cannot be read"),
        ({**GOOD, "a": OTHER}, "tensor 'a' that cannot be read"),
        ({**GOOD, "a": pickled()}, "tensor 'a' that cannot be read"),
    ],
)
def test_what_is_wrong_with_arrays_is_said(arrays: dict[str, Array], fault: str | None) -> None:
    import re

    found = fault_in(ArrayRecord(arrays), layout_of(ArrayRecord(GOOD)))
    assert found is None if fault is None else found is not None and re.search(fault, found)

"""What a client remembers of earlier rounds."""

from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from hf_ext.trainers.federated.memory import ClientMemory

COMMITTED = ("control",)


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})


def entries(value: float) -> dict[str, dict[str, torch.Tensor]]:
    half = torch.tensor([value, 0.25], dtype=torch.bfloat16)
    return {"received": {"a.b/c": half}, "control": {"w": torch.tensor(value)}}


def values(recalled: object) -> dict[str, float]:
    assert isinstance(recalled, dict)
    return {name: float(next(iter(tensors.values())).flatten()[0]) for name, tensors in recalled.items()}


@pytest.fixture(params=["context", "folder"])
def memory(request: pytest.FixtureRequest, tmp_path: Path):
    node = context()
    folder = None if request.param == "context" else tmp_path / "state"
    return lambda federation="f": ClientMemory(node, folder, 3, federation)


def test_a_round_begins_with_the_newest_before_it(memory) -> None:
    assert memory().recall(1, 0, COMMITTED) == {}
    memory().keep(1, 0, entries(1))
    memory().keep(4, 1, entries(4))
    assert values(memory().recall(5, 4, COMMITTED)) == {"received": 4, "control": 4}
    assert memory().recall(5, 4, COMMITTED)["received"]["a.b/c"].dtype == torch.bfloat16


def test_a_round_that_is_repeated_begins_as_the_first_time(memory) -> None:
    memory().keep(1, 0, entries(1))
    memory().keep(4, 1, entries(4))
    assert values(memory().recall(4, 1, COMMITTED)) == {"received": 1, "control": 1}
    memory().keep(4, 1, entries(40))
    assert values(memory().recall(6, 4, COMMITTED)) == {"received": 40, "control": 40}


def test_what_the_server_has_not_taken_is_not_committed(memory) -> None:
    memory().keep(1, 0, entries(1))
    memory().keep(4, 1, entries(4))  # lost on its way
    memory().keep(6, 1, entries(6))  # refused
    assert values(memory().recall(8, 1, COMMITTED)) == {"received": 6, "control": 1}
    assert values(memory().recall(8, 0, COMMITTED)) == {"received": 6}


def test_a_server_that_does_not_say_has_taken_all(memory) -> None:
    memory().keep(2, None, entries(2))
    assert values(memory().recall(3, None, COMMITTED)) == {"received": 2, "control": 2}


def test_no_more_rounds_are_kept_than_may_be_asked_for(memory) -> None:
    for number in range(1, 30):
        memory().keep(number, max(number - 5, 0), entries(number))
    assert len(memory()._rounds) <= 3


def test_a_memory_of_another_federation_counts_as_none(memory) -> None:
    memory().keep(1, 0, entries(1))
    assert memory("another").recall(2, 1, COMMITTED) == {}


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "client-3.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nothing of the kind")
    with pytest.raises(ValueError, match=r"state_dir: found a broken '.*client-3.safetensors'"):
        ClientMemory(context(), tmp_path, 3, "f")


def test_clients_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    ClientMemory(context(), tmp_path, 3, "f").keep(1, 0, entries(1))
    assert ClientMemory(context(), tmp_path, 4, "f").recall(2, 1, COMMITTED) == {}

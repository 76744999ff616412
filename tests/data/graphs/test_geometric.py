"""What is said where PyTorch Geometric is not installed."""

import importlib
import sys

import pytest

import hf_ext
import hf_ext.data.graphs


def test_it_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_ext.data.graphs import geometric

    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(ImportError, match=r"torch_geometric is not installed: pip install 'hf-ext\[graph\]'"):
        importlib.reload(geometric)
    assert "graphs" in dir(hf_ext.data)  # the other names are there all the same


def test_every_name_resolves() -> None:
    names = dir(hf_ext.data.graphs)
    assert {"load_graph", "PUSplit", "check_graph", "NeighborSampler", "SampledRows", "GraphCollator"} <= set(names)
    assert all(getattr(hf_ext.data.graphs, name) is not None for name in names)

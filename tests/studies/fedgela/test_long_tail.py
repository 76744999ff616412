"""The study of the fixed simplex head: how long the tail is, which heads are compared, every system runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_ext.studies import reproduce
from hf_ext.studies.fedgela import STUDIES
from hf_ext.studies.fedgela.heads import COSINE, LEARNT, RANDOM, SIMPLEX
from hf_ext.studies.fedgela.long_tail import LONG_TAIL, long_tail, make_model


def test_how_long_the_tail_is() -> None:
    labels = np.repeat(np.arange(5), 100)
    rows, order = long_tail(labels, 100, 0)
    assert len(set(rows)) == len(rows)
    counts = np.bincount(labels[rows], minlength=5)[order]
    assert counts.tolist() == [100, 32, 10, 3, 1]
    assert np.bincount(labels[long_tail(labels, 1, 0)[0]]).tolist() == [100] * 5
    orders = {tuple(long_tail(labels, 10, seed)[1]) for seed in range(5)}
    assert len(orders) > 1 and set(order) == set(range(5))


def test_heads() -> None:
    """They differ in nothing but the head, and only the cosines of the learnt one are trained."""
    models = {head: make_model(head, {"temperature": 0.1}, 10, 0) for head in (LEARNT, COSINE, RANDOM, SIMPLEX)}
    pixels = torch.randn(2, 1, 8, 8)
    bodies = [dict(getattr(model, "model", model).vit.state_dict()) for model in models.values()]
    assert all(torch.equal(value, body[name]) for body in bodies for name, value in bodies[0].items())
    assert isinstance(models[LEARNT].classifier, nn.Linear)
    trained = {
        head: any(name.endswith("classifier.weight") for name, _ in model.named_parameters())
        for head, model in models.items()
    }
    assert trained == {LEARNT: True, COSINE: True, RANDOM: False, SIMPLEX: False}
    weights = {head: torch.as_tensor(models[head].classifier.weight).detach() for head in (COSINE, RANDOM, SIMPLEX)}
    assert torch.equal(weights[COSINE], weights[RANDOM])
    grams = {head: weight.T @ weight for head, weight in weights.items()}
    torch.testing.assert_close(grams[SIMPLEX], (torch.eye(10) * 10 - 1) / 9, rtol=0, atol=1e-5)
    torch.testing.assert_close(grams[RANDOM].diagonal(), torch.ones(10))
    assert grams[RANDOM].fill_diagonal_(0).abs().max() > 0.2
    assert all(model(pixel_values=pixels).logits.shape == (2, 10) for model in models.values())


@pytest.mark.slow
def test_every_system_runs(tmp_path: Path) -> None:
    study = replace(LONG_TAIL, cases=LONG_TAIL.cases[2:3])
    result = reproduce(study, out=tmp_path, quick=True, seeds=1)
    (systems,) = result.cases.values()
    assert len(systems) == 4 and {"rare classes", "frequent classes"} <= systems[SIMPLEX].details.keys()
    assert LONG_TAIL in STUDIES

"""Metrics of unlearning: by hand, against each other, and through evaluate."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_ext.functional import confidence_attack
from hf_ext.metrics import UNLEARNING_METRIC, gap, learned_attack, threshold_attack, unlearning_metrics


def _rows(count: int, confidence: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of four classes that favour the label by about so much."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    return rng.normal(size=(count, 4)) + confidence * np.eye(4)[labels], labels


PARTS = {"forget": (30, 0.0), "hidden": (20, 2.0), "retain": (80, 4.0), "test": (60, 1.0)}


def _all() -> tuple[np.ndarray, np.ndarray, list[str]]:
    rows = {part: _rows(count, strength, seed) for seed, (part, (count, strength)) in enumerate(PARTS.items())}
    names = [part for part in rows for _ in range(PARTS[part][0])]
    return np.concatenate([r[0] for r in rows.values()]), np.concatenate([r[1] for r in rows.values()]), names


def test_by_hand() -> None:
    logits, labels, parts = _all()
    found = unlearning_metrics(logits, labels, parts)
    right, where = logits.argmax(1) == labels, np.array(parts)
    assert found["UA_forget"] == pytest.approx(100 * right[:30].mean())
    assert found["UA_hidden"] == pytest.approx(100 * right[30:50].mean())
    assert found["UA"] == pytest.approx(100 * right[:50].mean())
    assert found["RA"] == pytest.approx(100 * right[where == "retain"].mean())
    assert found["TA"] == pytest.approx(100 * right[where == "test"].mean())
    confidence = torch.tensor(logits).softmax(-1)[torch.arange(len(labels)), torch.tensor(labels)]
    parts_of = [confidence[torch.tensor(mask)] for mask in (where == "retain", where == "test", where < "i")]
    assert found["MIA"] == pytest.approx(100 * float(confidence_attack(*parts_of)[1]))
    assert 0 <= found["MIA_learned"] <= 100 and found["MIA_learned_auc"] > 70
    assert "gap" not in found and "UA_hidden" not in unlearning_metrics(logits[where != "hidden"], *_without_hidden())


def _without_hidden() -> tuple[np.ndarray, list[str]]:
    _, labels, parts = _all()
    kept = np.array(parts) != "hidden"
    return labels[kept], [part for part in parts if part != "hidden"]


def test_the_gap_is_to_the_retrained_model() -> None:
    logits, labels, parts = _all()
    own = unlearning_metrics(logits, labels, parts)
    assert unlearning_metrics(logits, labels, parts, retrained=own)["gap"] == 0
    other = {name: own[name] + shift for name, shift in (("UA", 4), ("RA", -2), ("TA", 0), ("MIA", 2))}
    assert unlearning_metrics(logits, labels, parts, retrained=other)["gap"] == pytest.approx(2)
    with pytest.raises(ValueError, match="retrained: found none of TA, MIA"):
        gap(own, {"UA": 1, "RA": 1})


def test_attacks_tell_members_from_others() -> None:
    members, others = _rows(200, 4.0, 0), _rows(200, 0.5, 1)
    for targets, share in ((_rows(200, 4.0, 2), 0.0), (_rows(200, 0.5, 3), 1.0)):
        assert threshold_attack(members, others, targets)["nonmember_share"] == pytest.approx(share, abs=0.25)
        found = learned_attack(members, others, targets)
        assert found["nonmember_share"] == pytest.approx(share, abs=0.25)
        assert found["auc"] > 0.9
        assert found["target_auc"] == pytest.approx(0.5 + 0.45 * share, abs=0.08)
        assert found == learned_attack(members, others, targets)


def test_a_learned_attack_sees_what_a_threshold_does_not() -> None:
    """Members and others with the same confidence in the label, but not the same in the other classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    rest = {"peaked": np.array([0.3, 0.0, 0.0]), "flat": np.array([0.1, 0.1, 0.1])}
    made = {}
    for name, shares in rest.items():
        probabilities = np.array([np.insert(shares + 1e-3, label, 0.7) for label in labels])
        made[name] = (np.log(probabilities) + rng.normal(scale=1e-2, size=(300, 4)), labels)
    found = learned_attack(made["peaked"], made["flat"], made["flat"])
    assert found["auc"] > 0.99 and found["nonmember_share"] > 0.99
    assert threshold_attack(made["peaked"], made["flat"], made["flat"])["nonmember_share"] < 0.95


def test_nothing_to_tell_is_chance() -> None:
    found = learned_attack(_rows(300, 1.0, 0), _rows(300, 1.0, 1), _rows(300, 1.0, 2))
    assert found["auc"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, p: unlearning_metrics(x, y, ["nope", *p[1:]]), "parts: found .*'nope'.* allowed are forget"),
        (lambda x, y, p: unlearning_metrics(x[:40], y[:40], p[:40]), "and all but 'hidden' have to occur"),
        (lambda x, y, p: unlearning_metrics(x, y[:-1], p), "logits, labels, parts: found shapes"),
        (lambda x, y, p: threshold_attack((x, y), (x, y), (x[:0], y[:0])), "rows: found logits of shape"),
        (lambda x, y, p: threshold_attack((x, y), (x, y - 1), (x, y)), r"rows: found labels of int64 from -1 to"),
        (lambda x, y, p: threshold_attack((x, y), (x, y + 0.5), (x, y)), r"rows: found labels of float64"),
        (lambda x, y, p: learned_attack((x, y), (x[:3], y[:3]), (x, y)), "nonmembers: found 3 rows, allowed"),
    ],
)
def test_wrong_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*_all())


@pytest.mark.slow
def test_evaluate_loads_the_folder(modules_cache: str) -> None:
    import evaluate

    metric = evaluate.load(UNLEARNING_METRIC, cache_dir=modules_cache)
    logits, labels, parts = _all()
    retrained = {"UA": 0.0, "RA": 99.0, "TA": 90.0, "MIA": 100.0}
    found = metric.compute(predictions=logits, references=labels, parts=parts, retrained=retrained)
    expected = unlearning_metrics(logits.astype(np.float32), labels, parts, retrained=retrained)
    assert found == pytest.approx(expected, rel=1e-4)

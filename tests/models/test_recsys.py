"""Sequential recommenders: histories, logits and losses."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem, SequentialRecommenderModel
from hf_ext.models.recsys import modeling_recsys

ARCHITECTURES = ("sasrec", "gru", "din", "deepfm")
CAUSAL = ("sasrec", "gru")
ITEMS, LENGTH = 12, 6
ROWS = torch.arange(1, ITEMS + 1)


def _model(architecture: str = "sasrec", **config: Any) -> SequentialRecommenderForNextItem:
    torch.manual_seed(0)
    settings = {"num_items": ITEMS, "hidden_size": 8, "max_length": LENGTH, "initializer_range": 0.5, **config}
    model = SequentialRecommenderForNextItem(SequentialRecommenderConfig(architecture=architecture, **settings))
    if architecture in ("din", "deepfm"):
        torch.nn.init.normal_(model.scorer.item_bias.weight)
    return model.eval()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_how_tables_begin(architecture: str) -> None:
    config = SequentialRecommenderConfig(architecture=architecture, num_items=2000, hidden_size=8, direct_rank=4)
    model = SequentialRecommenderForNextItem(config)
    for table in (model.direct.history, model.direct.candidates):
        assert table.weight[1:].std().item() == pytest.approx(0.5, rel=0.05)
        assert not table.weight[0].any()
    if architecture in ("din", "deepfm"):
        assert not model.scorer.item_bias.weight.any()


HISTORIES = torch.tensor([[0, 0, 3, 1, 4, 2], [5, 9, 2, 6, 5, 11], [0, 0, 0, 0, 0, 7]])
CANDIDATES = torch.tensor([[3, 1, 12], [7, 7, 2], [4, 9, 1]])


# ------------------------------------------------------------------------------------------------ histories
@pytest.mark.parametrize("direct", [0, 2])
def test_padding_changes_nothing(architecture: str, direct: int) -> None:
    """However much there is of it, and on whichever side; a mask does what row 0 does."""
    model = _model(architecture, direct_rank=direct)
    expected = model(torch.tensor([[3, 1, 4, 2]])).logits
    for line in ([0, 3, 1, 4, 2], [0, 0, 3, 1, 4, 2], [3, 1, 4, 2, 0], [3, 0, 1, 4, 0, 2]):
        torch.testing.assert_close(model(torch.tensor([line])).logits, expected, rtol=1e-5, atol=1e-6)
    masked = model(torch.tensor([[9, 9, 3, 1, 4, 2]]), torch.tensor([[0, 0, 1, 1, 1, 1]])).logits
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(HISTORIES).logits[:1], expected, rtol=1e-5, atol=1e-6)


def test_the_newest_of_long_histories(architecture: str) -> None:
    model = _model(architecture, direct_rank=2)
    long = torch.cat([torch.tensor([[8, 8, 8]] * 3), HISTORIES], dim=1)
    assert torch.equal(model(long, long != 8).logits, model(HISTORIES, HISTORIES != 8).logits)
    assert torch.equal(model(long).logits, model(HISTORIES).logits)
    assert not torch.equal(model(long[:, :-1]).logits, model(HISTORIES).logits)


def test_rows_without_items(architecture: str) -> None:
    """Their mediator is zero; others in the batch are as ever, and gradients are finite."""
    model = _model(architecture, direct_rank=2)
    with_empty = HISTORIES.clone()
    with_empty[1] = 0
    outputs = model(with_empty, candidate_ids=CANDIDATES, labels=torch.tensor([0, 1, 2]))
    assert bool((outputs.mediator[1] == 0).all()) and bool((outputs.direct_logits[1] == 0).all())
    if architecture in CAUSAL:
        assert outputs.logits[1].tolist() == [-math.inf, 0, 0]  # the first is a copy of the target
    alone = model(HISTORIES, candidate_ids=CANDIDATES).logits
    torch.testing.assert_close(outputs.logits[[0, 2]], alone[[0, 2]])
    outputs.loss.backward()
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters() if value.grad is not None)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_later_item_changes_no_earlier_state(architecture: str) -> None:
    model: Any = _model(architecture).model
    other = HISTORIES.clone()
    other[:, -2:] = torch.tensor([[10, 11]])
    one, two = model(HISTORIES).hidden_states_all, model(other).hidden_states_all
    torch.testing.assert_close(one[:2, :-2], two[:2, :-2])
    assert not torch.allclose(one[:, -1], two[:, -1])
    assert bool((one[HISTORIES == 0] == 0).all())
    assert torch.equal(one[:, -1], model(HISTORIES).mediator)


def test_order_matters_where_it_should(architecture: str) -> None:
    model = _model(architecture)
    swapped = HISTORIES[:, [0, 1, 3, 2, 4, 5]]
    same = torch.allclose(model(swapped[:1]).logits, model(HISTORIES[:1]).logits, atol=1e-6)
    assert same == (architecture in ("din", "deepfm"))


# ------------------------------------------------------------------------------------------------ logits
@pytest.mark.parametrize("direct", [0, 2])
def test_all_items_are_the_candidates_of_all(architecture: str, direct: int) -> None:
    model = _model(architecture, direct_rank=direct)
    everything = model(HISTORIES, labels=torch.tensor([5, 1, 12]))
    for candidates in (ROWS, ROWS.expand(3, -1)):
        chosen = model(HISTORIES, candidate_ids=candidates, labels=torch.tensor([4, 0, 11]))
        torch.testing.assert_close(chosen.logits, everything.logits)
        torch.testing.assert_close(chosen.loss, everything.loss)
    torch.testing.assert_close(
        model(HISTORIES, candidate_ids=CANDIDATES).logits, everything.logits.gather(1, CANDIDATES - 1)
    )


def test_the_two_paths_add_up(architecture: str) -> None:
    model = _model(architecture, direct_rank=2)
    outputs = model(HISTORIES, candidate_ids=CANDIDATES)
    indirect = model.score_mediator(outputs.mediator, CANDIDATES)
    torch.testing.assert_close(indirect + outputs.direct_logits, outputs.logits)
    bank = torch.cat([HISTORIES, HISTORIES.flip(0)])
    every = model.direct_logits(bank, CANDIDATES)
    assert every.shape == (6, 3, 3)
    torch.testing.assert_close(every[:3].diagonal(dim1=0, dim2=1).T, outputs.direct_logits)
    torch.testing.assert_close(model.direct_logits(bank, CANDIDATES[1]), every[:, 1])
    shared = model(HISTORIES, candidate_ids=ROWS)
    torch.testing.assert_close(
        model.score_mediator(shared.mediator, ROWS) + model.direct_logits(HISTORIES, ROWS), shared.logits
    )
    by_hand = torch.stack([model.direct.history.weight[row[row > 0]].mean(0) for row in HISTORIES])
    torch.testing.assert_close(model.direct_logits(HISTORIES, ROWS), by_hand @ model.direct.candidates.weight[1:].T)
    with pytest.raises(ValueError, match="direct_rank: found 0"):
        _model(architecture).direct_logits(bank, CANDIDATES)


def test_the_catalogue_by_spans(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, loss and gradients are the same, however few items are scored at once."""
    found = []
    for budget in (2**25, 1):
        monkeypatch.setattr(modeling_recsys, "BUDGET", budget)
        model = _model(architecture, direct_rank=2)
        assert model.chunk_size(3) == 1 or budget > 1
        outputs = model(HISTORIES, labels=torch.tensor([5, 1, 12]))
        outputs.loss.backward()
        found.append([outputs.logits, outputs.loss, *(value.grad for _, value in sorted(model.named_parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_deepfm_by_hand() -> None:
    model: Any = _model("deepfm")
    table, scorer = model.model.item_embeddings.weight, model.scorer
    mean, newest, candidate = table[[3, 1, 4, 2]].mean(0), table[2], table[5]
    both = torch.cat([mean, newest])
    perceptron = scorer.perceptron
    hidden = (perceptron.from_history(both) + perceptron.from_candidate(candidate)).relu()
    hidden = perceptron.hidden[0](hidden).relu()
    expected = scorer.item_bias.weight[5] + scorer.history_bias(both) + perceptron.output(hidden)
    expected = expected + mean @ newest + mean @ candidate + newest @ candidate
    torch.testing.assert_close(model(HISTORIES).logits[0, 4], expected[0])


@pytest.mark.parametrize("normalise", [True, False])
def test_din_by_hand(normalise: bool) -> None:
    model: Any = _model("din", din_normalise=normalise)
    table, attention, scorer = model.model.item_embeddings.weight, model.model.attention, model.scorer
    history, candidate = table[[3, 1, 4, 2]], table[5]
    product = attention.from_product(history * candidate)
    weights = attention.output((attention.from_item(history) + attention.from_candidate(candidate) + product).relu())
    weights = weights.softmax(0) if normalise else weights
    interest = (weights * history).sum(0)
    outputs = model(HISTORIES, candidate_ids=torch.tensor([5, 6]))
    torch.testing.assert_close(outputs.mediator[0, 0], interest)
    pair = torch.cat([interest, interest * candidate])
    expected = scorer.item_bias.weight[5, 0] + scorer.perceptron(pair, candidate)
    torch.testing.assert_close(outputs.logits[0, 0], expected)


def test_excluded_rows(architecture: str) -> None:
    """In evaluation mode, and never the label's own."""
    model = _model(architecture)
    labels, exclude = torch.tensor([5, 1, 12]), torch.tensor([[3, 5, 0], [1, 0, 0], [0, 2, 2]])
    plain, without = model(HISTORIES, labels=labels), model(HISTORIES, labels=labels, exclude_ids=exclude)
    gone = plain.logits != without.logits
    assert gone.nonzero().tolist() == [[0, 2], [2, 1]]
    assert bool((without.logits[gone] == -math.inf).all()) and torch.equal(plain.loss, without.loss)
    assert bool((model(HISTORIES, exclude_ids=exclude).logits == -math.inf).sum() == 4)
    few = model(HISTORIES, candidate_ids=CANDIDATES, exclude_ids=exclude, labels=torch.tensor([1, 0, 2])).logits
    assert ((few == -math.inf).nonzero()).tolist() == [[0, 0], [1, 1]]  # the second copy of a target is no candidate
    model.train()
    assert not bool((model(HISTORIES, exclude_ids=exclude).logits == -math.inf).any())


# ------------------------------------------------------------------------------------------------ losses
@pytest.mark.parametrize("direct", [0, 2])
@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_every_position_is_the_mean_of_the_prefixes(
    architecture: str, kind: str, direct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(architecture, loss=kind, direct_rank=direct, direct_loss_weight=0.3)
    labels = torch.tensor([[-100, -100, 1, 4, 2, 9], [9, -100, 6, 5, 11, -100], [-100] * 5 + [1]])
    losses = [
        model(HISTORIES[row : row + 1, : place + 1], labels=labels[row : row + 1, place]).loss
        for row, place in (labels != -100).nonzero().tolist()
    ]
    expected = torch.stack(losses).mean()
    found = model(HISTORIES, labels=labels)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.logits, model(HISTORIES).logits)  # of which the last layer is computed otherwise
    monkeypatch.setattr(modeling_recsys, "BUDGET", 3 * ITEMS)  # a few positions at once
    torch.testing.assert_close(model(HISTORIES, labels=labels).loss, expected)
    long, more = F.pad(HISTORIES, (2, 0), value=8), F.pad(labels, (2, 0), value=3)
    assert torch.equal(model(long, labels=more).loss, model(HISTORIES, labels=labels).loss)
    assert model.train()(HISTORIES, labels=labels).logits is None


def test_in_batch_softmax_by_hand(architecture: str) -> None:
    """All targets of a batch are everybody's candidates; who has the same target is nobody's negative."""
    model = _model(architecture, dropout=0.0).train()
    targets, log_q = torch.tensor([4, 9, 4]), torch.tensor([0.1, 0.2, 0.3]).log()
    given = {"candidate_ids": targets, "labels": torch.arange(3)}
    scores = model(HISTORIES).logits[:, targets - 1]
    kept = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
    for extra, shift in (({}, torch.zeros(3)), ({"candidate_log_q": log_q}, log_q)):
        masked = (scores - shift).masked_fill(~kept, -math.inf)
        expected = -(masked.log_softmax(1)).diagonal().mean()
        torch.testing.assert_close(model(HISTORIES, **given, **extra).loss, expected)
    model.eval()  # the correction is of training
    assert torch.equal(model(HISTORIES, **given, candidate_log_q=log_q).loss, model(HISTORIES, **given).loss)


def test_log_q_makes_sampled_softmax_the_full_one() -> None:
    """The corrected loss over a sample in which every item is as likely as it is drawn estimates the full softmax."""
    model = _model("gru", dropout=0.0).train()
    torch.manual_seed(1)
    probability = torch.softmax(torch.randn(ITEMS), 0)
    full = model(HISTORIES[:1], labels=torch.tensor([5])).logits[0].logsumexp(0)
    drawn = torch.multinomial(probability, 20000, replacement=True)
    logits = model(HISTORIES[:1], candidate_ids=drawn + 1, candidate_log_q=probability[drawn].log()).logits[0]
    torch.testing.assert_close(logits.logsumexp(0) - math.log(20000), full, atol=0.02, rtol=0)


def test_binary_cross_entropy_by_hand(architecture: str) -> None:
    model = _model(architecture, loss="bce")
    candidates = torch.tensor([[3, 1, 12], [7, 8, 0], [4, 9, 1]])
    scores = model(HISTORIES).logits.gather(1, candidates.clamp(min=1) - 1)
    truth = torch.tensor([[0.0, 1, 0], [1, 0, -100], [1, 1, 0]])
    each = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    counted = truth != -100
    found = model(HISTORIES, candidate_ids=candidates, labels=truth)
    torch.testing.assert_close(found.loss, each[counted].mean())
    assert found.logits[1, 2] == -math.inf  # padding is no candidate
    one = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 0, 0]])
    each = F.binary_cross_entropy_with_logits(scores, one, reduction="none")
    expected = (each[0].mean() + each[1, :2].mean()) / 2
    places = torch.tensor([1, 0, -100])
    torch.testing.assert_close(model(HISTORIES, candidate_ids=candidates, labels=places).loss, expected)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_num_items_in_batch_divides_the_sum(architecture: str, kind: str) -> None:
    model = _model(architecture, loss=kind, direct_rank=2)
    labels = torch.tensor([5, -100, 12])
    mean = model(HISTORIES, labels=labels).loss
    for number in (8, torch.tensor(8), torch.tensor([8])):
        torch.testing.assert_close(model(HISTORIES, labels=labels, num_items_in_batch=number).loss, mean * 2 / 8)
    nothing = model(HISTORIES, labels=torch.full((3,), -100)).loss
    nothing.backward()
    assert nothing == 0


def test_the_direct_path_has_a_share_of_the_loss(architecture: str) -> None:
    model = _model(architecture, direct_rank=2, direct_loss_weight=0.25)
    labels = torch.tensor([1, 0, 2])
    outputs = model(HISTORIES, candidate_ids=CANDIDATES[[0, 2, 2]], labels=labels)
    expected = F.cross_entropy(outputs.logits, labels)
    expected = expected + 0.25 * F.cross_entropy(outputs.logits - outputs.direct_logits, labels)
    torch.testing.assert_close(outputs.loss, expected)


# ------------------------------------------------------------------------------------------------ bad input
GOOD: dict[str, Tensor] = {"input_ids": HISTORIES}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": torch.tensor([[1, 13]])}, "input_ids: found 13, the model's 12 items are 1 to 12"),
    ({"input_ids": torch.tensor([[-1, 2]])}, "input_ids: found -1, the model's 12 items"),
    ({"input_ids": torch.rand(2, 3)}, "input_ids: found torch.float32, allowed are rows"),
    ({"input_ids": torch.tensor([1, 2])}, r"input_ids: found the shape \(2,\), allowed are 2"),
    ({"attention_mask": torch.ones(3, 5)}, r"attention_mask: found the shape \(3, 5\), allowed is that of"),
    ({"candidate_ids": torch.tensor([[1], [2], [20]])}, "candidate_ids: found 20, the model's"),
    ({"labels": torch.tensor([1, 0, 2])}, "labels: found 0, allowed are 1 to 12, and -100"),
    ({"labels": torch.tensor([1, 13, 2])}, "labels: found 13, allowed are 1 to 12"),
    ({"candidate_ids": CANDIDATES, "labels": torch.tensor([0, 3, 0])}, "labels: found 3, allowed are 0 to 2"),
    ({"candidate_ids": CANDIDATES, "labels": torch.rand(3, 3)}, "labels: found torch.float32 of shape"),
    ({"candidate_ids": CANDIDATES, "labels": HISTORIES}, r"labels: found the shape \(3, 6\), allowed are 1 dim"),
    ({"labels": HISTORIES[:, 1:].clamp(min=1)}, r"labels: found the shape \(3, 5\), allowed is that of input_ids"),
    ({"exclude_ids": torch.tensor([[1], [2], [99]])}, "exclude_ids: found 99"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD, ids=[message[:34] for _, message in BAD])
def test_bad_input(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        _model()(**GOOD | inputs)


@pytest.mark.parametrize("architecture", ["din", "deepfm"])
def test_no_label_at_every_position_of_others(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"labels: found the shape \(3, 6\), allowed are 1 dimensions"):
        _model(architecture)(HISTORIES, labels=HISTORIES.clamp(min=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "zebra"}, "architecture: found 'zebra', allowed are sasrec, gru, din, deepfm"),
        ({"loss": "mse"}, "loss: found 'mse', allowed are softmax, bce"),
        ({"hidden_act": "zebra"}, "hidden_act: found 'zebra'"),
        ({"num_items": 0}, "num_items: found 0, allowed are integers >= 1"),
        ({"direct_rank": -1}, "direct_rank: found -1"),
        ({"dropout": 1}, r"dropout: found 1, allowed are numbers in \[0, 1\)"),
        ({"attention_dropout": 1.5}, r"attention_dropout: found 1.5, allowed"),
        ({"initializer_range": 0}, "initializer_range: found 0"),
        ({"pad_token_id": 3}, "pad_token_id: found 3, allowed is 0"),
        ({"hidden_size": 9}, "num_attention_heads: found 2 with hidden_size=9"),
    ],
)
def test_configurations_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SequentialRecommenderConfig(**options)


def test_a_catalogue_of_one_item(architecture: str) -> None:
    model = _model(architecture, num_items=1, direct_rank=1)
    outputs = model(torch.tensor([[0, 1]]), labels=torch.tensor([1]))
    assert outputs.logits.shape == (1, 1) and outputs.loss == 0


def test_the_model_alone(architecture: str) -> None:
    """What it gives is what scores the candidates; of DIN only with some."""
    whole = _model(architecture)
    bare: SequentialRecommenderModel = whole.model
    outputs = bare(HISTORIES)
    assert (outputs.mediator is None) == (architecture == "din")
    assert (outputs.hidden_states_all is None) == (architecture not in CAUSAL)
    for candidates in (CANDIDATES, ROWS):
        mediator = bare(HISTORIES, candidate_ids=candidates).mediator
        torch.testing.assert_close(
            whole.score_mediator(mediator, candidates), whole(HISTORIES, candidate_ids=candidates).logits
        )
    assert isinstance(bare(HISTORIES, return_dict=False), tuple)

"""Other methods train recommenders by the plain loss of the next item; none is combined with CausalD."""

from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from hf_ext.data.interactions import NextItems
from hf_ext.data.rows import WithColumns
from hf_ext.functional import disam_ascent_loss, divbs_select_with_info
from hf_ext.trainers import (
    CausalDArguments,
    CausalDMixin,
    DISAMArguments,
    DISAMConfig,
    DISAMMixin,
    DISAMTrainer,
    DivBSArguments,
    DivBSConfig,
    DivBSMixin,
    DivBSTrainer,
)

Make = Callable[..., Any]


def _arguments(kind: Any, out: Path, **extra: Any) -> Any:
    defaults = {"max_steps": 2, "learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "logging_steps": 1}
    order = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 8}
    return kind(**{"output_dir": str(out), **defaults, **quiet, **order, **extra})


def _by_hand(model: Any, rows: Any, first: int) -> Any:
    """One update of DISAM with rho 0.3 and lambda 0.5 by eight rows of a plain SGD."""
    batch = torch.utils.data.default_collate(rows.__getitems__(list(range(first, first + 8))))
    candidates, domains = batch.get("candidate_ids"), batch["domain_ids"]
    labels = batch["labels"] if candidates is not None else batch["labels"] - 1

    def losses() -> torch.Tensor:
        logits = model(batch["input_ids"], candidate_ids=candidates).logits
        return F.cross_entropy(logits, labels, reduction="none")

    found = losses()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ascent = disam_ascent_loss(found, domains, lambda_=0.5, average=found.mean())
    gradients = torch.autograd.grad(ascent, weights, allow_unused=True, materialize_grads=True)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight += 0.3 * gradient / norm
    descent = torch.autograd.grad(losses().mean(), weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for weight, gradient, step in zip(weights, gradients, descent, strict=True):
            weight -= 0.3 * gradient / norm + 0.5 * step


@pytest.mark.parametrize("num_negatives", [4, None], ids=["sampled", "all items"])
def test_disam_over_groups_of_users(
    num_negatives: int | None, recommender: Make, data: NextItems, tmp_path: Path
) -> None:
    """Head and tail users are the domains; an update is that of its equations."""
    plain = NextItems(data.split, max_length=6, num_negatives=num_negatives, fixed_negatives=True, head_fraction=0.5)
    rows = WithColumns(plain, domain_ids=plain.groups)
    model, expected = recommender(), recommender()
    options = {"disam_rho": 0.3, "disam_lambda": 0.5, "disam_num_domains": 2, "max_steps": 1}
    DISAMTrainer(model, _arguments(DISAMConfig, tmp_path, **options), train_dataset=rows).train()
    _by_hand(expected, rows, 0)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_divbs_picks_by_the_gradients_of_the_items(recommender: Make, data: NextItems, tmp_path: Path) -> None:
    """The last layer's weights are the items' embeddings: residuals over all items, times the mediator."""
    model, expected = recommender(), recommender()
    options = {"divbs_ratio": 0.25, "max_steps": 1, "per_device_train_batch_size": 4}
    trainer = DivBSTrainer(model, _arguments(DivBSConfig, tmp_path, **options), train_dataset=data)
    trainer.train()
    batch = torch.utils.data.default_collate(data.__getitems__(list(range(16))))
    outputs = expected(batch["input_ids"])
    columns = batch["labels"] - 1
    residuals = outputs.logits.softmax(-1) - F.one_hot(columns, 20)
    picked = divbs_select_with_info(residuals.detach(), outputs.mediator.detach(), 4)[0]
    assert set(picked.tolist()) != {0, 1, 2, 3}
    loss = F.cross_entropy(outputs.logits[picked], columns[picked])
    loss.backward()
    with torch.no_grad():
        for weight in expected.parameters():
            weight -= 0.5 * weight.grad
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    logged = trainer.state.log_history[0]
    assert logged["kept_loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert logged["candidate_loss"] == pytest.approx(F.cross_entropy(outputs.logits, columns).item(), abs=1e-5)


def test_divbs_says_where_there_are_no_such_gradients(recommender: Make, data: NextItems, tmp_path: Path) -> None:
    """Candidates of each row's own; scores not linear in the mediator, or by a direct path; but it may draw."""
    sampled = NextItems(data.split, max_length=6, num_negatives=4)
    before = recommender()

    def train(model: Any, rows: Any, **options: Any) -> None:
        DivBSTrainer(model, _arguments(DivBSConfig, tmp_path, divbs_ratio=0.5, **options), train_dataset=rows).train()

    with pytest.raises(ValueError, match="candidate_ids: found some in a batch, allowed is none"):
        train(model := recommender(), sampled)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.state_dict().items())
    for other in (recommender("din"), recommender("deepfm"), recommender(direct_rank=2)):
        with pytest.raises(
            ValueError, match=r"divbs_head_module: found nothing and no linear .* in SequentialRecommender"
        ):
            train(other, data)
    for other, rows in ((recommender("din"), data), (recommender(), sampled)):
        train(other, rows, divbs_strategy="uniform")


def test_causald_is_combined_with_no_other_method(recommender: Make, data: NextItems, tmp_path: Path) -> None:
    config: Any = make_dataclass(
        "Config", [], bases=(CausalDArguments, DISAMArguments, DivBSArguments, TrainingArguments)
    )
    for mixin, name in ((DISAMMixin, "disam"), (DivBSMixin, "divbs")):
        for bases in ((CausalDMixin, mixin, Trainer), (mixin, CausalDMixin, Trainer)):
            kind: Any = type("Both", bases, {})
            rows = WithColumns(data, domain_ids=data.groups)
            with pytest.raises(ValueError, match=f"found it combined with (causald|{name}), allowed is no other"):
                kind(
                    model=recommender(),
                    args=_arguments(config, tmp_path, causald_num_candidates=5, disam_num_domains=2),
                    train_dataset=rows,
                    teachers=[recommender("din")],
                )

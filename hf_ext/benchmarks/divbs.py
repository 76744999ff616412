"""DivBS's selection next to one on the gradients themselves, and its update next to the passes that it cannot do
without."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.tables import Table
from hf_ext.benchmarks.traffic import traffic_table
from hf_ext.benchmarks.training import images, update, vit
from hf_ext.functional import divbs_select, divbs_select_gram, logit_residuals
from hf_ext.trainers import DivBSConfig, DivBSTrainer

SHARE, CLASSES = 0.1, 100


# ------------------------------------------------------------------------------------------------ selection
def select_on_gradients(gradients: Tensor, k: int) -> Tensor:
    """The same picks from the gradients `[B, D]` themselves: one product with all per pick, Gram-Schmidt."""
    rest = gradients.mean(dim=0).unsqueeze(1)  # what of the mean is not within the span of the picks, [D, 1]
    directions = gradients.new_zeros(k, gradients.shape[1])
    chosen = torch.zeros(len(gradients), dtype=torch.bool, device=gradients.device)
    picks = torch.zeros(k, dtype=torch.int64, device=gradients.device)
    for step in range(k):
        pick = (gradients @ rest).squeeze(1).abs().masked_fill(chosen, -1.0).argmax()
        new, known = gradients[pick].unsqueeze(1), directions[:step]
        direction = new - known.t() @ (known @ new)
        direction = direction / direction.norm()
        rest = rest - direction * (direction.t() @ rest)
        directions[step], chosen[pick], picks[step] = direction.squeeze(1), True, pick
    return picks


def gradients_of(residuals: Tensor, features: Tensor) -> Tensor:
    """Every candidate's last-layer gradient: `[B, C]`, `[B, d]` -> `[B, C d]`."""
    return (residuals.unsqueeze(2) * features.unsqueeze(1)).flatten(1)


def _by_gram_matrix(residuals: Tensor, features: Tensor, k: int) -> Tensor:
    gradients = gradients_of(residuals, features)
    return divbs_select_gram(gradients @ gradients.t(), k)[0]


#: ways to select, by the name of the contender
FACTORED, GRADIENTS, GRAM = "DivBS, factored", "gradient matrix", "gradient matrix, then its Gram matrix"
SELECTIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    FACTORED: divbs_select,
    GRADIENTS: lambda residuals, features, k: select_on_gradients(gradients_of(residuals, features), k),
    GRAM: _by_gram_matrix,
}


def candidates(quick: bool) -> tuple[Tensor, Tensor, int]:
    """Residuals `[B, C]`, features `[B, d]` and the number to pick, the same at every call."""
    rows, classes, width = (40, 10, 16) if quick else (320, CLASSES, 512)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, width, generator=generator).relu()
    logits = features @ torch.randn(width, classes, generator=generator) / width**0.5
    return logit_residuals(logits, torch.arange(rows) % classes), features, round(SHARE * rows)


def _selecting(name: str) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        residuals, features, k = candidates(quick)
        # in float64, for the last picks differ by less than float32 resolves
        picks = SELECTIONS[name](residuals.double(), features.double(), k)
        if not torch.equal(picks, divbs_select(residuals, features, k)):
            raise RuntimeError(f"{name}: found other picks than DivBS's, allowed are the same")
        residuals, features = residuals.to(device), features.to(device)
        return lambda: SELECTIONS[name](residuals, features, k)

    return make


SELECTION = Benchmark(
    name="divbs-selection",
    title="Selection of 32 of 320 candidates",
    setting=f"B=320, C={CLASSES}, d=512, k=32, float32; the picks of all are the same (checked before, in float64)",
    contenders=tuple(
        Contender(name, _selecting(name), is_method=name == FACTORED, work="the same picks") for name in SELECTIONS
    ),
    reference=GRADIENTS,
    bars=(Bar(FACTORED, GRADIENTS, 0.05), Bar(FACTORED, GRAM, 0.05)),
)


# ------------------------------------------------------------------------------------------------ step
STEP, PASSES, SELECTED, ALL = "DivBS", "forward of all + update of the kept", "update of the kept", "update of all"


def _rows(device: torch.device, quick: bool, share: float = 1.0) -> dict[str, Tensor]:
    count = 40 if quick else 160
    batch = images(round(share * count), classes=CLASSES)
    return {name: values.to(device) for name, values in batch.items() if name != "domain_ids"}


def _model(quick: bool) -> torch.nn.Module:
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    return vit(quick, num_labels=CLASSES, **({} if quick else sizes))


def _divbs(device: torch.device, quick: bool) -> Step:
    batch = _rows(device, quick)
    return update(DivBSTrainer, DivBSConfig, _model(quick), [batch], device, divbs_ratio=SHARE)


def _plain(share: float) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        return update(Trainer, TrainingArguments, _model(quick), [_rows(device, quick, share)], device)

    return make


def _passes(device: torch.device, quick: bool) -> Step:
    """What is left if scores and selection are free."""
    model = _model(quick)
    trained = update(Trainer, TrainingArguments, model, [_rows(device, quick, SHARE)], device)
    pixels = _rows(device, quick)["pixel_values"]

    def step() -> None:
        with torch.no_grad():
            model.eval()(pixel_values=pixels)
        trained()

    return step


UPDATE = Benchmark(
    name="divbs-step",
    title="An update on 16 of 160 candidates",
    setting=f"a ViT of 0.8 million weights, images of 64 x 64 pixels, {CLASSES} classes, AdamW, gradients clipped",
    contenders=(
        Contender(ALL, _plain(1.0)),
        Contender(STEP, _divbs, is_method=True),
        Contender(PASSES, _passes),
        Contender(SELECTED, _plain(SHARE)),
    ),
    reference=ALL,
    bars=(Bar(STEP, PASSES, 1.10),),
)


# ------------------------------------------------------------------------------------------------ half precision
CHEAP, CHEAP_PASSES = "DivBS, bfloat16 scores", "forward of all in bfloat16 + update of the kept"
_TOKENS = 48


def _texts(device: torch.device, quick: bool, share: float = 1.0) -> dict[str, Tensor]:
    rows = round(share * (40 if quick else 160))
    ids = torch.randint(5, 100, (rows, _TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % 4
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def _encoder(quick: bool) -> BertForSequenceClassification:
    width, depth = (16, 1) if quick else (128, 4)
    sizes: dict[str, Any] = {"vocab_size": 4000, "hidden_size": width, "intermediate_size": 4 * width}
    sizes |= {"num_hidden_layers": depth, "num_attention_heads": 4, "num_labels": 4}
    return BertForSequenceClassification(BertConfig(**sizes))


def _texts_divbs(**options: Any) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        batch = _texts(device, quick)
        return update(DivBSTrainer, DivBSConfig, _encoder(quick), [batch], device, divbs_ratio=SHARE, **options)

    return make


def _texts_plain(share: float) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        return update(Trainer, TrainingArguments, _encoder(quick), [_texts(device, quick, share)], device)

    return make


def _cheap_passes(device: torch.device, quick: bool) -> Step:
    """What is left if scores in half precision and selection are free."""
    model, batch = _encoder(quick), _texts(device, quick)
    trained = update(Trainer, TrainingArguments, model, [_texts(device, quick, SHARE)], device)
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def step() -> None:
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
            model.eval()(**read)
        trained()

    return step


TEXTS = Benchmark(
    name="divbs-texts-step",
    title="An update on 16 of 160 texts",
    setting=f"a BERT of 1.4 million weights, {_TOKENS} tokens, AdamW, gradients clipped",
    contenders=(
        Contender(ALL, _texts_plain(1.0)),
        Contender(STEP, _texts_divbs(), is_method=True),
        Contender(CHEAP, _texts_divbs(divbs_scoring_dtype="bfloat16"), is_method=True),
        Contender(CHEAP_PASSES, _cheap_passes),
        Contender(SELECTED, _texts_plain(SHARE)),
    ),
    reference=ALL,
    bars=(Bar(CHEAP, CHEAP_PASSES, 1.15),),
)


# ------------------------------------------------------------------------------------------------ messages
def selecting_together(device: torch.device, quick: bool) -> Step:
    """An update on 8 of 80 candidates of each process, which all processes select together."""
    batch = {
        name: values.to(device) for name, values in images(_EACH, classes=CLASSES).items() if name != "domain_ids"
    }
    model = vit(True, num_labels=CLASSES)
    return update(DivBSTrainer, DivBSConfig, model, [batch], device, divbs_ratio=SHARE, divbs_selection_scope="global")


_EACH = 80


def messages(rounds: int, quick: bool) -> Table:
    """What processes that select together send each other."""
    return traffic_table(
        "divbs-messages",
        "Messages of DivBS's global selection",
        f"A tenth of the candidates, images of 64 x 64 pixels (48 kB), C={CLASSES}, d=16",
        selecting_together,
        _EACH,
        quick,
    )


BENCHMARKS = (SELECTION, UPDATE, TEXTS)
TABLES = (messages,)

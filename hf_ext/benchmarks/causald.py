"""CausalD's update next to the plain Trainer's, its effects next to the teachers' forward passes, and its student.

Besides, as tables: rankings and recommendations of large catalogues, and RecBole.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers import AutoModel, Trainer, TrainingArguments

from hf_ext._runs import quiet as _quiet
from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.ranking_tables import ranking_table, recommend_table
from hf_ext.benchmarks.recbole_table import recbole_table
from hf_ext.benchmarks.recommenders import events, recommender
from hf_ext.benchmarks.training import inference, update
from hf_ext.data.interactions import NextItems, NextItemsCollator, SplitInteractions
from hf_ext.trainers import CausalDConfig, CausalDTrainer
from hf_ext.trainers.causald.bank import draw_bank
from hf_ext.trainers.causald.candidates import EFFECT, CandidateRows, fingerprint
from hf_ext.trainers.causald.effects import Adjustment, key_of, write_effects
from hf_ext.trainers.causald.teachers import Teacher, identity_of

ITEMS, LENGTH, CANDIDATES, ROWS, BANK = 2000, 50, 32, 256, 32
STUDENT = f"a SASRec of 0.2 million weights, {ITEMS} items, histories of {LENGTH}"
PLAIN, CAUSALD, WITHOUT_CACHE = "plain Trainer", "CausalD", "plain Trainer + forward of three teachers"
BARE, SERVED = "bare student", "distilled student"
FORWARD, ENSEMBLE, OVER_BANK = "forward passes of the teachers", "effects, ensemble", f"effects, bank of {BANK}"


def _split(quick: bool) -> SplitInteractions:
    return events(20, 60, 12) if quick else events(400, ITEMS, 40)


def _model(quick: bool, architecture: str = "sasrec", **options: Any) -> Any:
    sizes = {"hidden_size": 8, "max_length": 10, "num_hidden_layers": 1} if quick else {"hidden_size": 64}
    return recommender(architecture, _split(quick), **{**sizes, **options})


def _rows(quick: bool, part: Any = "train") -> NextItems:
    return NextItems(_split(quick), part, max_length=10 if quick else LENGTH)


def _teachers(quick: bool, **options: Any) -> list[Any]:
    return [_model(quick, architecture, **options).eval() for architecture in ("sasrec", "gru", "deepfm")]


# ------------------------------------------------------------------------------------------------ step
class _Batches(Sequence[dict[str, Any]]):
    """One batch, which is read anew, and other rows', every time it is asked for: what an update reads is timed."""

    def __init__(self, rows: CandidateRows, size: int, device: torch.device) -> None:
        self._rows, self._size, self._device, self._collate = rows, size, device, NextItemsCollator()
        self._order = np.random.default_rng(0).permutation(len(rows))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        self._order = np.roll(self._order, self._size)
        batch = self._collate(self._rows.__getitems__(self._order[: self._size].tolist()))
        return {name: values.to(self._device) for name, values in batch.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield self[0]


def _candidates(quick: bool) -> CandidateRows:
    rows = _rows(quick)
    return CandidateRows(rows, rows.split.num_items, 8 if quick else CANDIDATES)


def _plain(device: torch.device, quick: bool) -> Step:
    batches = _Batches(_candidates(quick), 8 if quick else ROWS, device)
    return update(Trainer, TrainingArguments, _model(quick), batches, device)


def _without_cache(device: torch.device, quick: bool) -> Step:
    """What an update takes if the teachers are asked again every time."""
    teachers, alone = [teacher.to(device) for teacher in _teachers(quick)], _plain(device, quick)
    batch = next(iter(_Batches(_candidates(quick), 8 if quick else ROWS, device)))
    inputs = {name: values for name, values in batch.items() if name != "labels"}

    @torch.no_grad()
    def forward() -> None:
        for teacher in teachers:
            teacher(**inputs)

    def step() -> None:
        forward()
        alone()

    return step


def _distilling(device: torch.device, quick: bool) -> Step:
    rows = _candidates(quick)
    shape = (len(rows), rows.num_candidates)
    with tempfile.TemporaryFile() as file:  # which stays as long as it is mapped
        effects = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    effects[:] = np.random.default_rng(0).standard_normal(shape)
    batches = _Batches(rows.with_columns(**{EFFECT: np.asarray(effects)}), 8 if quick else ROWS, device)
    own = {"teachers": _teachers(quick)}  # which are not asked: what they say is in the file
    return update(CausalDTrainer, CausalDConfig, _model(quick), batches, device, trainer_options=own)


UPDATE = Benchmark(
    name="causald-step",
    title="An update of one batch",
    setting=(
        f"{STUDENT}, {ROWS} rows with {CANDIDATES} candidates, which are read and collated within the step, the "
        "effect from a memory-mapped file; AdamW, gradients clipped"
    ),
    contenders=(
        Contender(PLAIN, _plain),
        Contender(CAUSALD, _distilling, is_method=True),
        Contender(WITHOUT_CACHE, _without_cache),
    ),
    reference=PLAIN,
    bars=(Bar(CAUSALD, PLAIN, 1.05),),
)


# ------------------------------------------------------------------------------------------------ effects
def _some(quick: bool) -> CandidateRows:
    """So many rows that what is done once for all of them is small."""
    rows = _candidates(quick)
    return rows if quick else CandidateRows(Subset(rows.dataset, range(8 * ROWS)), rows.num_items, CANDIDATES)


def _forward(device: torch.device, quick: bool) -> Step:
    """Passes over batches that are there."""
    rows, teachers = _some(quick), [teacher.to(device) for teacher in _teachers(quick, direct_rank=8)]
    batches = []
    for first in range(0, len(rows), 512):
        batch = NextItemsCollator()(rows.__getitems__(range(first, min(first + 512, len(rows)))))
        batches.append({name: values.to(device) for name, values in batch.items() if name != "labels"})

    @torch.no_grad()
    def step() -> list[Tensor]:
        return [teacher(**batch).logits for teacher in teachers for batch in batches]

    return step


def _effects(bank: int | None) -> Callable[[torch.device, bool], Step]:
    """All that is done before training: keys of rows and teachers, their passes, averages, the file."""

    def make(device: torch.device, quick: bool) -> Step:
        rows = _some(quick)
        teachers = [Teacher(model, place) for place, model in enumerate(_teachers(quick, direct_rank=8))]
        drawn = bank and draw_bank(rows.dataset, bank, method="interactions")
        adjustment = Adjustment(teachers, [1 / len(teachers)] * len(teachers), drawn or None, "probability", "softmax")

        def step() -> None:
            with tempfile.TemporaryDirectory() as folder:
                identities = [identity_of(teacher, teacher.source) for teacher in teachers]
                key = key_of(rows, fingerprint(rows.dataset), identities, adjustment)
                write_effects(Path(folder), key, rows, adjustment, device=device, collate=NextItemsCollator())

        return step

    return make


EFFECTS = Benchmark(
    name="causald-effects",
    title="The teachers' effects on the training rows",
    setting=(
        f"a SASRec, a GRU and a DeepFM with direct paths, {8 * ROWS} rows with {CANDIDATES} candidates; effects with "
        "all there is to do before training: rows are read, keys made, the file written"
    ),
    contenders=(
        Contender(FORWARD, _forward),
        Contender(ENSEMBLE, _effects(None), is_method=True),
        Contender(OVER_BANK, _effects(BANK), is_method=True),
    ),
    reference=FORWARD,
    bars=(Bar(ENSEMBLE, FORWARD, 1.25), Bar(OVER_BANK, FORWARD, 1.25)),
)


# ------------------------------------------------------------------------------------------------ inference
def _bare(device: torch.device, quick: bool) -> Step:
    return _logits(_model(quick), device, quick)


def _served(device: torch.device, quick: bool) -> Step:
    """The student that CausalD trained and saved, as whoever loads it has it."""
    with tempfile.TemporaryDirectory() as folder:
        args = CausalDConfig(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=8,
            causald_num_candidates=8,
            use_cpu=device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
        )
        rows = Subset(_rows(quick), range(8))
        own: dict[str, Any] = {"train_dataset": rows, "teachers": _teachers(quick)}
        trainer = _quiet(CausalDTrainer(model=_model(quick), args=args, **own))
        trainer.train()
        trainer.save_model(folder)
        return _logits(AutoModel.from_pretrained(folder), device, quick)


def _logits(model: Any, device: torch.device, quick: bool) -> Step:
    rows = _rows(quick, "test")
    batch = NextItemsCollator()(rows.__getitems__(range(min(ROWS, len(rows)))))
    return inference(model, batch["input_ids"], device)


INFERENCE = Benchmark(
    name="causald-inference",
    title="Inference",
    setting=f"{STUDENT}, {ROWS} of them, logits of all items; the distilled student is read from where it was saved",
    contenders=(Contender(BARE, _bare), Contender(SERVED, _served, is_method=True)),
    reference=BARE,
    bars=(Bar(SERVED, BARE, 1.01),),
)

BENCHMARKS = (INFERENCE, UPDATE, EFFECTS)
TABLES = (ranking_table, recommend_table, recbole_table)

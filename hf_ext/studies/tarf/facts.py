"""TARF on a language model: forget all about a few persons, of whom all or some facts are handed in."""

import contextlib
import json
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_ext._files import read_json
from hf_ext._runs import arguments, logits, quiet
from hf_ext.data import EMBEDDED, load
from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.metrics import unlearning_metrics
from hf_ext.studies.study import Case, Comparison, Outcome, Preparation, Run, Source, Study, System
from hf_ext.studies.tarf.scores import Cost, Scores, left_out_rows, outcome
from hf_ext.studies.training import Rows
from hf_ext.trainers import TARFConfig, TARFTrainer

LEARNING_EPOCHS, EPOCHS = 60, 6  # of the original and the retrained model; of unlearning
BATCH, FORGET_BATCH = 64, 12
FORGOTTEN = 6  # persons
ONE = "one question"  # a fact is handed in; the others about it are hidden
CAP = 7.0  # three times the logarithm of ten answers
RETRAINED = "retrained.json"
_COLUMNS = ("text", "answer", "person", "attribute")
GA, FT, CONSTANT, NPO = "gradient ascent", "fine-tuning", "constant ascent + descent", "constant NPO + descent"
TARF, TARF_NPO = "TARF", "TARF with NPO"
_ASCENT = {"learning_rate": (5e-4, 1e-3), "tarf_k": (0.3, 1.0)}
_TARF = {"tarf_t0": 3.0, "tarf_t1": 0.2, "tarf_anneal_by": "step"}


# ------------------------------------------------------------------------------------------------ data
def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that are no facts."""
    for split in ("train", "test"):
        columns = data[split].column_names if split in data else []
        if not set(_COLUMNS) <= set(columns):
            raise ValueError(
                f"--data: found {', '.join(columns) or 'no rows'} in the split {split} of {name}, allowed are "
                f"{', '.join(_COLUMNS)} in train and test"
            )


class Facts:
    """Tokens of all questions, and who is to be forgotten.

    Args:
        data: splits `train` and `test`; half of the latter, drawn by the seed, become `validation`.
        seed: draws the persons to forget too.
    """

    def __init__(self, data: DatasetDict, seed: int) -> None:
        words = sorted(
            {word for split in ("train", "test") for text in data[split]["text"][:] for word in text.split()}
        )
        self.ids = {word: number for number, word in enumerate(words, start=1)}
        self.length = max(len(text.split()) for split in ("train", "test") for text in data[split]["text"][:])
        rng = np.random.default_rng(seed)
        persons = np.unique(data["train"].with_format("numpy")["person"][:])
        self.forgotten = rng.permutation(persons)[:FORGOTTEN]
        halves = np.array_split(rng.permutation(len(data["test"])), 2)
        self.parts = {
            "train": data["train"],
            **{
                name: data["test"].select(np.sort(rows))
                for name, rows in zip(("validation", "test"), halves, strict=True)
            },
        }

    def concept(self, data: Dataset) -> NDArray[np.bool_]:
        """Which rows are about those who are to be forgotten."""
        return np.isin(data.with_format("numpy")["person"][:], self.forgotten)

    def handed_in(self, data: Dataset, selection: Any) -> NDArray[np.bool_]:
        """Which of them are handed in: `"all"`, one row a fact (`"one question"`), or the rows of these attributes."""
        concept, attribute = self.concept(data), np.asarray(data.with_format("numpy")["attribute"][:])
        if selection == "all":
            return concept
        if selection == ONE:
            person = np.asarray(data.with_format("numpy")["person"][:])
            first = np.unique(np.stack([person, attribute]), axis=1, return_index=True)[1]
            return concept & np.isin(np.arange(len(data)), first)
        return concept & np.isin(attribute, [data.features["attribute"].str2int(name) for name in selection])

    def rows(self, data: Dataset) -> Rows:
        """What a model gets: questions and answers, of which only the last word, the answer, is learned."""
        tokens = torch.zeros(len(data), self.length, dtype=torch.long)
        labels = torch.full_like(tokens, IGNORED_LABEL)
        for row, text in enumerate(data["text"][:]):
            ids = torch.tensor([self.ids[word] for word in text.split()])
            tokens[row, : len(ids)] = ids
            labels[row, len(ids) - 1] = ids[-1]
        person = torch.as_tensor(np.asarray(data["person"][:]))
        return Rows.of(input_ids=tokens, attention_mask=(tokens > 0).long(), labels=labels, person=person)


def _open(name: str, seed: int) -> Facts:
    return Facts(load(name, seed=seed) if name in EMBEDDED else load(name), seed)


# ------------------------------------------------------------------------------------------------ models
def prepare(ready: Preparation) -> None:
    """Leave the original model and the scores of the retrained one, by case, in the folder."""
    facts = _open(ready.data, ready.seed)
    train = facts.parts["train"]
    _trained(facts, train, ready).save_model(str(ready.folder / "original"))
    retrained = _trained(facts, train.select(np.flatnonzero(~facts.concept(train))), ready)
    scores = {case.name: judge(retrained, facts, case.options["handed_in"]) for case in CASES}
    (ready.folder / RETRAINED).write_text(json.dumps(scores))


def _trained(facts: Facts, data: Dataset, ready: Preparation) -> Trainer:
    set_seed(ready.seed)
    config = LlamaConfig(
        vocab_size=len(facts.ids) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    args = arguments(
        TrainingArguments,
        steps=-1,
        num_train_epochs=2 if ready.quick else LEARNING_EPOCHS,
        learning_rate=3e-3,
        seed=ready.seed,
        per_device_train_batch_size=BATCH,
    )
    trainer = quiet(_Answering(model=LlamaForCausalLM(config), args=args, train_dataset=facts.rows(data)))
    trainer.train()
    return trainer


def at_the_answer(logits: Tensor, labels: Tensor) -> Tensor:
    """Of every row, `[B, V]`, those that predict its one label."""
    place = labels.ne(IGNORED_LABEL).int().argmax(dim=1) - 1
    return logits[torch.arange(len(logits), device=logits.device), place]


class _Answering(Trainer):
    """Predicts answers alone."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(preprocess_logits_for_metrics=at_the_answer, **kwargs)


class _Forgetting(TARFTrainer):
    """Predicts answers alone."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(preprocess_logits_for_metrics=at_the_answer, **kwargs)


# ------------------------------------------------------------------------------------------------ runs
def run(run: Run) -> Outcome:
    """Unlearn with one system; the score is the gap to the retrained model, in the tuning with other questions."""
    facts, selection = _open(run.data, run.seed), run.case.options["handed_in"]
    train = facts.parts["train"]
    forget = facts.handed_in(train, selection)
    hidden = facts.concept(train)[~forget]
    model = LlamaForCausalLM.from_pretrained(run.folder / "original")
    settings: dict[str, Any] = {"num_train_epochs": EPOCHS, **run.system.options, **run.hyper_parameters}
    if settings.get("tarf_method", "tarf") == "tarf":
        leaves_out = {"tarf_selection": "groups", "tarf_n_hidden_groups": FORGOTTEN}
        settings |= leaves_out if hidden.any() else {"tarf_selection": "none", "tarf_t1": 0.0}
    args = arguments(
        TARFConfig,
        steps=-1,
        seed=run.seed,
        per_device_train_batch_size=BATCH,
        tarf_forget_batch_size=FORGET_BATCH,
        tarf_max_forget_loss=CAP,
        tarf_group_column="person",
        **settings,
    )
    trainer = _Forgetting(
        model=model,
        args=args,
        train_dataset=facts.rows(train.select(np.flatnonzero(~forget))),
        forget_dataset=facts.rows(train.select(np.flatnonzero(forget))),
    )
    quiet(trainer)
    cost = Cost(model)
    with contextlib.suppress(FloatingPointError):  # the weights are then those before that step
        trainer.train()
    cost.stop()
    return outcome(
        judge(trainer, facts, selection),
        read_json(run.folder / RETRAINED)[run.case.name],
        cost=cost.rows / (LEARNING_EPOCHS * int((~facts.concept(train)).sum())),
        left_out=left_out_rows(trainer, hidden),
    )


def judge(trainer: Trainer, facts: Facts, selection: Any) -> Scores:
    """UA, RA, TA, MIA and the like, with `validation` and with `test` questions about those who are not forgotten."""
    train = facts.parts["train"]
    concept = facts.concept(train)
    roles = np.where(facts.handed_in(train, selection), "forget", np.where(concept, "hidden", "retain"))
    trained, metrics = _predicted(trainer, facts, train), {}
    for name in ("validation", "test"):
        unseen = facts.parts[name].select(np.flatnonzero(~facts.concept(facts.parts[name])))
        predicted, labels = (
            np.concatenate(both) for both in zip(trained, _predicted(trainer, facts, unseen), strict=True)
        )
        metrics[name] = unlearning_metrics(predicted, labels, [*roles.tolist(), *["test"] * len(unseen)])
    return metrics


def _predicted(trainer: Trainer, facts: Facts, data: Dataset) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = facts.rows(data)
    return logits(trainer, rows), rows.columns["labels"].max(dim=1).values.numpy()


CASES = (
    Case("all rows handed in", "facts", {"handed_in": "all"}),
    Case("one question a fact handed in", "facts", {"handed_in": ONE}),
    Case("two facts of six handed in", "facts", {"handed_in": ["town", "craft"]}),
)

PROTOCOL = f"""
- **Data.** 60 invented persons with six attributes each, of ten values (`hf_ext.data.facts`). A fact is asked for in
  three ways: two are trained on, the third is kept for validation or test, half each. Six persons are the concept, to
  be forgotten with all that is known about them.
- **Cases.** *All rows handed in*; *one question a fact*: the other question about the same fact is hidden in the
  remaining data; *two facts of six*: the four others are hidden.
- **Model.** A Llama of two layers and 64 dimensions, words as tokens, trained for {LEARNING_EPOCHS} epochs (AdamW,
  0.003, cosine schedule, batches of {BATCH}) on all rows; the retrained one on those outside the concept.
- **Gap**: mean of the absolute differences in UA, RA, TA and MIA to the retrained model, in points, of answers (one
  word, so that they are classes). TA is over unseen questions about those who are not forgotten. Chance is a tenth:
  that is what retraining leaves of the concept, or a little more.
- **Budget.** {EPOCHS} epochs over the remaining data, gradient ascent 2, with {FORGET_BATCH} rows to forget an update.
  *Cost*: rows trained on, in percent of those of retraining; of a pass without gradients a row counts a third.
- **Cap.** Rows whose loss is above {CAP:g} are not ascended on any more, in all systems.
- **TARF**: t0 = 3 and t1 = 0.2 epochs, time moves with every update; what may be left out are persons, and TARF knows
  that six are, where something is hidden. *NPO* (negative preference optimisation) is bounded where ascent is not.
- **Hyper-parameters**: of four learning rates, or two and two weights of the ascent, those with the smallest mean gap
  on seeds 1000 and 1001, to models retrained with these seeds. The grid was laid out after nine runs with seed 1000.
- A seed draws persons, facts, questions, models and batches, and is shared by all systems.
""".strip()

FACTS = Study(
    name="tarf-facts",
    title="TARF: a language model that is to forget persons",
    question=(
        "How far from a model retrained without what it knew about a few persons does unlearning end, when all that "
        "it knows about them is handed in, and when only a part is?"
    ),
    metric="gap to the retrained model, percentage points",
    data={
        "facts": Source(
            "questions and answers about invented persons",
            embedded="facts",
            needs="text (the answer is its last word), answer, person, attribute, in the splits train and test",
            origin="comes with this package",
        )
    },
    cases=CASES,
    systems=(
        System(GA, {"tarf_method": "ga", "num_train_epochs": 2}, {"learning_rate": (1e-4, 2e-4, 5e-4, 1e-3)}),
        System(FT, {"tarf_method": "ft"}, {"learning_rate": (5e-4, 1e-3, 2e-3, 5e-3)}),
        System(CONSTANT, {"tarf_method": "ga_ft"}, _ASCENT),
        System(NPO, {"tarf_method": "ga_ft", "tarf_forget_loss": "npo"}, _ASCENT),
        System(TARF, _TARF, _ASCENT, is_method=True),
        System(TARF_NPO, {**_TARF, "tarf_forget_loss": "npo"}, _ASCENT, is_method=True),
    ),
    comparisons=(
        *(Comparison(TARF, baseline) for baseline in (GA, FT, CONSTANT, NPO)),
        Comparison(TARF_NPO, NPO),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    tuning_seeds=2,
    greater_is_better=False,
)

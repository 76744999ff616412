"""FER's study once more, on images and with a pretrained vision backbone that is fine-tuned."""

from dataclasses import replace
from pathlib import Path

import torch
from datasets import DatasetDict

from hf_ext.data import load
from hf_ext.studies.backbones import as_seen_by, options_of
from hf_ext.studies.fer import study as fer
from hf_ext.studies.fer.data import Part, check_faces
from hf_ext.studies.study import Comparison, Outcome, Preparation, Run, Source, Study, System
from hf_ext.studies.tables import one_table, rows_by_split, whole_images

COLUMNS = ("image", "label", "split")
_FILE = "data.pt"


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for anything but a table of images of the seven expressions."""
    check_faces(name, data, COLUMNS)


def prepare(ready: Preparation) -> None:
    """Leave the rows of every part in the folder: `[N, 3, H, W]` of 0 to 255, and labels."""
    table = one_table(ready.name, load(ready.data), COLUMNS)
    images, labels = torch.from_numpy(whole_images(ready.name, table["image"][:])), torch.as_tensor(table["label"][:])
    parts = rows_by_split(table["split"][:], ready.seed)
    columns = {name: {"features": images[rows], "labels": labels[rows]} for name, rows in parts.items()}
    torch.save({"parts": columns, "names": table.features["label"].names}, ready.folder / _FILE)


def run(run: Run) -> Outcome:
    """Train one system; the score is the mean of the classes' accuracies."""
    saved = torch.load(run.folder / _FILE, weights_only=True)
    options = run.case.options
    parts = {
        name: Part(as_seen_by(options, part["features"]), part["labels"]) for name, part in saved["parts"].items()
    }
    torch.manual_seed(run.seed)
    return fer.train_and_score(run, options["backbone"], parts, saved["names"], texts_of="faces")


PROTOCOL = f"""
- **Backbone.** `BACKBONE`, a pretrained vision model, all of whose weights are trained, with a learning rate of its
  own. A linear head, or a projection to the texts' width and the cosine with their embeddings. Images as the model's
  processor makes them, nothing augmented.
- **Texts, controls, matching, score**: as in the study `fer`.
- **Budget.** {fer.STEPS} updates of {fer.BATCH} rows (of fewer, if there are no more), AdamW, gradients clipped at
  norm 1, cosine schedule. The last weights are judged.
- **Hyper-parameters**: for every system four combinations, of the two learning rates, by the validation score of a
  run with another seed. The scale of the cosines is 20, which `fer` mostly chose.
""".strip()

_RATES = {"learning_rate": (1e-3, 3e-3), "backbone_rate": (1e-5, 1e-4)}
_CASES = ("faces, all rows", "faces, 20 a class")
_SYSTEMS = (fer.HEAD, fer.RANDOM, fer.SHUFFLED_ALL, fer.MATCHING, fer.ALL)


def tuned(backbone: str) -> Study:
    """The study with this backbone.

    Args:
        backbone: a Hub id, or the folder of a model of transformers.
    """
    options = options_of(backbone)
    return Study(
        name="fer-tuned",
        title="FER: texts as classifiers of faces, with a backbone that is fine-tuned",
        question="Do texts, and the losses around a neutral state, help where a pretrained network is fine-tuned?",
        metric=fer.STUDY.metric,
        data={
            "faces": Source(
                "images of FER2013", needs=f"{', '.join(COLUMNS)} (train, test)", origin=fer.STUDY.data["faces"].origin
            )
        },
        cases=tuple(
            replace(case, options={**case.options, **options}) for case in fer.STUDY.cases if case.name in _CASES
        ),
        systems=tuple(
            System(
                system.name,
                system.options,
                {**_RATES, **({"logit_scale": (20.0,)} if "texts" in system.options else {})},
                is_method=system.is_method,
            )
            for system in fer.STUDY.systems
            if system.name in _SYSTEMS
        ),
        comparisons=tuple(
            Comparison(each.method, each.baseline)
            for each in fer.STUDY.comparisons
            if {each.method, each.baseline} <= set(_SYSTEMS)
        ),
        check=check,
        prepare=prepare,
        run=run,
        protocol=PROTOCOL.replace("BACKBONE", Path(backbone).name),
        seeds=5,
    )

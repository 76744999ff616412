"""Our SASRec next to RecBole's on MovieLens-100k: CPU time of an epoch and NDCG@10, side by side in one run."""

import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ext.benchmarks.tables import Skipped, Table
from hf_ext.benchmarks.turns import Measured, take_turns
from hf_ext.data.interactions import Interactions, load_interactions

INSTALL = "pip install --no-deps --target recbole-peer recbole==1.2.1 colorlog==4.7.2 colorama==0.4.4 texttable"
#: how much lower a mean of NDCG@10 over late epochs may be: about its standard error over the 943 users
TOLERANCE = 0.008
SETTINGS: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "inner_size": 128,
    "dropout": 0.2,
    "max_length": 20,
    "learning_rate": 1e-3,
    "batch_size": 512,
    "seed": 0,
    "threads": 1,
}
QUICK: dict[str, Any] = {"hidden_size": 8, "layers": 1, "heads": 1, "inner_size": 8, "max_length": 5}
QUICK_USERS, QUICK_EVENTS = 30, 12
#: rows with a target at every place have about 11 of them: so many make as many updates an epoch
EVERY_BATCH = 48
PEER, LAST, EVERY = "RecBole's SASRec", "ours, a target a row", "ours, a target at every place"
Turns = Callable[[Mapping[str, Sequence[str]], int], dict[str, Measured]]


def recbole_table(rounds: int, quick: bool, turns: Turns = take_turns) -> Table:
    """As many epochs as rounds, all three programs in turns.

    Raises:
        Skipped: no RecBole.
        RuntimeError: programs that did not train and test on the same.
    """
    epochs = 2 if quick else rounds
    with tempfile.TemporaryDirectory() as folder:
        write_events(_movielens(), Path(folder) / "events", quick)
        settings = SETTINGS | (QUICK if quick else {})
        settings |= {"folder": str(Path(folder) / "events"), "epochs": epochs, "evaluate_every": 1, "in_turns": True}
        found = turns(_programs(settings), epochs)
    _check_same({name: measured.last for name, measured in found.items()})
    late = max(1, epochs // 3)
    quality = {name: _mean(measured.turns[-late:], "new_items_ndcg@10") for name, measured in found.items()}
    rows = [_row(name, found, quality) for name in (PEER, LAST, EVERY)]
    versions = found[PEER].last["versions"]
    return Table(
        name="causald-recbole",
        title="SASRec next to RecBole's on MovieLens-100k",
        setting=(
            f"RecBole {versions['recbole']} and the plain Trainer, on the same events with the last of a user to test "
            f"on and the one before left out, {found[PEER].last['training_rows']:,} targets an epoch, {epochs} epochs "
            f"in turns, one thread each; {_words(settings)}, Adam, nothing clipped or decayed. Ratios are medians "
            "within rounds, with quartiles. NDCG@10 among all items that the user has not met, the mean of the last "
            f"{late} epochs; *no worse*: lower by at most {TOLERANCE}"
        ),
        header=["", "CPU s an epoch", "of RecBole's", "NDCG@10", "no worse", "rows an epoch", "weights"],
        rows=rows,
        values={name: {"turns": measured.turns, "last": measured.last} for name, measured in found.items()},
        quick=quick,
    )


def write_events(interactions: Interactions, folder: Path, quick: bool = False) -> None:
    """Events as RecBole's file, with places in their user's history for times.

    RecBole keeps times as 32-bit floats, to which neighbouring seconds are the same.
    """
    folder.mkdir()
    counts = np.diff(interactions.offsets)
    places = np.arange(len(interactions)) - np.repeat(interactions.offsets[:-1], counts)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, row, place in zip(interactions.users, interactions.item_rows, places, strict=True):
        if not quick or (user < QUICK_USERS and place < QUICK_EVENTS):
            lines.append(f"{interactions.user_ids[user]}\t{interactions.items.ids[row - 1]}\t{place}")
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _movielens() -> Interactions:
    """The copy of MovieLens-100k within RecBole's installation.

    Raises:
        Skipped: no RecBole.
    """
    found = importlib.util.find_spec("recbole")
    if found is None or not found.submodule_search_locations:
        raise Skipped(f"causald-recbole, since RecBole is not installed ({INSTALL}, then PYTHONPATH=recbole-peer)")
    package = Path(next(iter(found.submodule_search_locations)))
    return load_interactions(package / "dataset_example" / "ml-100k" / "ml-100k.inter")


def _programs(settings: dict[str, Any]) -> dict[str, list[str]]:
    ours = ["-m", "hf_ext.benchmarks.recbole_ours"]
    every = settings | {"targets": "every", "batch_size": EVERY_BATCH}
    return {
        PEER: [str(Path(__file__).with_name("recbole_sasrec.py")), json.dumps(settings)],
        LAST: [*ours, json.dumps(settings | {"targets": "last"})],
        EVERY: [*ours, json.dumps(every)],
    }


def _check_same(last: Mapping[str, Mapping[str, Any]]) -> None:
    peer = (last[PEER]["training_rows"], last[PEER]["test_rows"], last[PEER]["items"])
    for name in (LAST, EVERY):
        own = tuple(last[name][part] for part in ("training_targets", "test_rows", "items"))
        if own != peer:
            raise RuntimeError(f"{name}: found {own} targets, test rows and items, allowed are {peer}, RecBole's")


def _row(name: str, found: Mapping[str, Measured], quality: Mapping[str, float]) -> list[str]:
    own, theirs = ([turn["cpu_seconds"] for turn in found[one].turns] for one in (name, PEER))
    ratios = [one / other for one, other in zip(own, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    last = found[name].last
    no_worse = quality[name] >= quality[PEER] - TOLERANCE
    return [
        name,
        f"{statistics.median(own):.2f}",
        "1" if name == PEER else f"{middle:.2f} ({low:.2f} to {high:.2f})",
        f"{quality[name]:.4f}",
        "" if name == PEER else "yes" if no_worse else "no",
        f"{last['training_rows']:,}",
        f"{last['parameters']:,}",
    ]


def _mean(turns: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(turn[name] for turn in turns)


def _words(settings: Mapping[str, Any]) -> str:
    return (
        f"{settings['hidden_size']} wide, {settings['layers']} layers, dropout {settings['dropout']}, histories of "
        f"{settings['max_length']}, {settings['batch_size']} targets an update"
    )

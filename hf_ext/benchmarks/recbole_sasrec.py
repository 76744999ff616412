"""Train RecBole's SASRec and print lines of JSON: the measurement of the peer. It needs nothing of hf_ext.

Run by an interpreter that can import ``recbole``, with the settings as one JSON object, the only argument::

    PYTHONPATH=recbole-peer python -P recbole_sasrec.py '{"folder": "events", "epochs": 10}'

(``-P``, since files beside this one have names that others use). The first line says that all is ready, one follows
every epoch that is evaluated, and the last has everything. With ``in_turns`` an epoch begins when a line is read.

``folder`` holds ``NAME.inter`` (NAME is the folder's own name), with ``user_id:token``, ``item_id:token`` and
``timestamp:float``. RecBole keeps times as 32-bit floats, which are 64 apart where seconds since 1970 are, and
sorts them stably; ``timestamp`` should be the place of an event in its user's history (0, 1, 2, ...), which leaves no
tie and no doubt which event is the test event. The first event of a user is no target; the last is for the test, the
one before for validation, which is not used. Every other event is a target once an epoch, after the newest
``max_length`` events.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import types
from typing import Any

DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "layers": 2,
    "heads": 2,
    "inner_size": 256,
    "dropout": 0.5,
    "max_length": 50,
    "learning_rate": 1e-3,
    "batch_size": 2048,
    "epochs": 10,
    "seed": 0,
    "threads": 1,
    "evaluate_every": 0,  # epochs between two looks at the test events beside the last one; 0: the last alone
    "in_turns": False,
}


def say(values: dict[str, Any]) -> None:
    """Print a line of JSON at once."""
    print(json.dumps(values), flush=True)


def stand_in() -> None:
    """Give RecBole 1.2.1 the names that newer libraries took away. Its own files stay as they were installed."""
    import numpy as np

    names: dict[str, type] = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    names |= {"float": float, "int": int, "bool": np.bool_, "object": object, "str": str}
    for name, now in names.items():
        if name not in np.__dict__:
            setattr(np, name, now)
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:  # a writer of event files, which nobody reads here
        module = types.ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = _Silent  # type: ignore[attr-defined]
        sys.modules["torch.utils.tensorboard"] = module


class _Silent:
    """Takes every call of a ``SummaryWriter`` and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def configuration(given: dict[str, Any], scratch: str) -> Any:
    from recbole.config import Config

    folder = os.path.abspath(given["folder"])
    if os.path.basename(folder) == "ml-100k":
        raise ValueError(
            "folder: found the name ml-100k, allowed is any other: by this one RecBole takes its own copy"
        )
    return Config(
        model="SASRec",
        dataset=os.path.basename(folder),
        config_dict={
            "data_path": os.path.dirname(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "checkpoint_dir": scratch,
            "use_gpu": False,
            "seed": given["seed"],
            "state": "ERROR",
            "show_progress": False,
            "hidden_size": given["hidden_size"],
            "n_layers": given["layers"],
            "n_heads": given["heads"],
            "inner_size": given["inner_size"],
            "hidden_dropout_prob": given["dropout"],
            "attn_dropout_prob": given["dropout"],
            "MAX_ITEM_LIST_LENGTH": given["max_length"],
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "learning_rate": given["learning_rate"],
            "train_batch_size": given["batch_size"],
            "epochs": given["epochs"],
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
            "metrics": ["NDCG", "Hit"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 10,
        },
    )


def histories(dataset: Any, train: Any, valid: Any) -> dict[int, Any]:
    """The items that a user met before the test event: user -> int64 Tensor."""
    import torch

    seen: dict[int, list[int]] = {}
    for part in (train, valid):
        feat = part.dataset.inter_feat
        first = feat["item_length"] == 1  # nobody's target, in the first history alone
        for user, item in zip(
            feat["user_id"][first].tolist(), feat["item_id_list"][first][:, 0].tolist(), strict=True
        ):
            seen.setdefault(user, []).append(item)
        for user, item in zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True):
            seen.setdefault(user, []).append(item)
    return {user: torch.tensor(items) for user, items in seen.items()}


def new_items_only(model: Any, test: Any, seen: dict[int, Any]) -> dict[str, float]:
    """NDCG@10 and HR@10 among the items that the user has not met. RecBole itself ranks the met ones too."""
    import torch

    model.eval()
    places: list[Any] = []
    with torch.no_grad():
        for interaction, _, _, items in test:
            scores = model.full_sort_predict(interaction)
            scores[:, 0] = -torch.inf
            for row, user in enumerate(interaction["user_id"].tolist()):
                own = scores[row, items[row]].clone()
                scores[row, seen[user]] = -torch.inf
                scores[row, items[row]] = own
            own = scores.gather(1, items[:, None])
            places.append((scores >= own).sum(1))  # 1 is the best place; ties count against the item
    place = torch.cat(places).double()
    inside = place <= 10
    return {
        "ndcg@10": float((inside / torch.log2(place + 1)).mean()),
        "hr@10": float(inside.double().mean()),
    }


def measure(given: dict[str, Any], scratch: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(given["threads"])
    import numpy
    import pandas
    import recbole
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    config = configuration(given, scratch)
    init_seed(config["seed"], True)
    began = time.perf_counter()
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    preparation = time.perf_counter() - began
    seen = histories(dataset, train, valid)
    init_seed(config["seed"], True)
    model = SASRec(config, train.dataset)
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    curve: list[dict[str, float]] = []

    class Timed(Trainer):
        def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
            if given["in_turns"]:
                sys.stdin.readline()
            wall, cpu = time.perf_counter(), time.process_time()
            loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
            seconds.append(round(time.perf_counter() - wall, 3))
            cpu_seconds.append(round(time.process_time() - cpu, 3))
            every = given["evaluate_every"]
            if epoch_idx + 1 == given["epochs"] or (every and (epoch_idx + 1) % every == 0):
                state = torch.get_rng_state()
                ranked = self.evaluate(test, load_best_model=False)
                unseen = new_items_only(model, test, seen)
                torch.set_rng_state(state)  # a look changes nothing of what follows
                curve.append(
                    {
                        "epoch": epoch_idx + 1,
                        "loss": loss / len(train_data),
                        "ndcg@10": float(ranked["ndcg@10"]),
                        "hr@10": float(ranked["hit@10"]),
                        "new_items_ndcg@10": unseen["ndcg@10"],
                        "new_items_hr@10": unseen["hr@10"],
                    }
                )
                say(curve[-1] | {"seconds": seconds[-1], "cpu_seconds": cpu_seconds[-1]})
            return loss

    trainer = Timed(config, model)
    say({"preparation_seconds": round(preparation, 2)})
    trainer.fit(train, valid_data=None, verbose=False, saved=False)
    return {
        "peer": "RecBole SASRec",
        "settings": {name: value for name, value in given.items() if name != "folder"},
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": cpu_seconds,
        "preparation_seconds": round(preparation, 2),
        **{name: value for name, value in curve[-1].items() if name not in ("epoch", "loss")},
        "curve": curve,
        "training_rows": len(train.dataset),
        "test_rows": len(test.dataset),
        "items": dataset.item_num - 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "recbole": recbole.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "pandas": pandas.__version__,
            "python": sys.version.split()[0],
        },
    }


def main() -> None:
    given = DEFAULTS | json.loads(sys.argv[1])
    del sys.argv[1:]  # RecBole would take settings from there
    stand_in()
    with tempfile.TemporaryDirectory() as scratch:
        say(measure(given, scratch))


if __name__ == "__main__":
    main()

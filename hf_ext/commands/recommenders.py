"""Interactions and a recommender for training from the command line."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from hf_ext._arguments import Bounds, Count
from hf_ext.commands.loading import Loaded
from hf_ext.data.interactions import (
    NextItems,
    NextItemsCollator,
    SplitInteractions,
    leave_one_out,
    load_interactions,
    split_by_time,
)
from hf_ext.models import SequentialRecommenderForNextItem
from hf_ext.trainers.arguments import MethodArguments, option

Architecture = Literal["sasrec", "gru", "din", "deepfm"]


@dataclass
class InteractionArguments(MethodArguments):
    """Who took what, and when."""

    dataset: str = option(
        "",
        "Who took what and when, required: a csv, json or parquet file, MovieLens' u.data, ratings.dat or folder, "
        "RecBole's *.inter, a Hub id, or 'shop', a simulated shop that comes along.",
    )
    dataset_split: str | None = option(None, "Of data that have several splits, the one that is read.")
    user_column: str = option("user_id", "Column of users, numbers or text.")
    item_column: str = option("item_id", "Column of items, numbers or text.")
    time_column: str | None = option(
        "timestamp", "Column of times, numbers or dates (ISO 8601); 'none': the order of the rows stands for them."
    )
    rating_column: str | None = option(None, "Column of ratings, for min_rating.")
    min_rating: float | None = option(None, "Leave out what is rated lower; by default everything counts.")
    titles: str | None = option(
        None, "File of the items' titles, with item_column; MovieLens' and RecBole's own are found by themselves."
    )
    title_column: str | None = option(
        None, "Column of the items' titles, in the file `titles` if it is given, else in `dataset`."
    )
    duplicates: Literal["keep", "first", "last", "error"] = option(
        "keep", "What becomes of the same item of the same user: 'keep' all, the 'first' or the 'last', or an 'error'."
    )
    min_events: Count = option(1, "Leave out users who have fewer events.")
    split: Literal["leave_one_out", "time"] = option(
        "leave_one_out",
        "What is evaluated on: 'leave_one_out', the last item of every user (the one before is for validation); "
        "'time', the last tenth of all events (the tenth before is for validation).",
    )

    def load(self) -> SplitInteractions:
        """Read and split them.

        Raises:
            ValueError: no data named, or data, columns or values that cannot be used.
        """
        if not self.dataset:
            raise ValueError(
                "dataset: found nothing, allowed is a file of who took what and when (csv, json, parquet, u.data, "
                "ratings.dat, *.inter), a folder of MovieLens or RecBole, a Hub id, or 'shop'"
            )
        interactions = load_interactions(
            self.dataset,
            user_column=self.user_column,
            item_column=self.item_column,
            time_column=None if self.time_column in (None, "none") else self.time_column,
            rating_column=self.rating_column,
            min_rating=self.min_rating,
            title_column=self.title_column,
            titles=self.titles,
            duplicates=self.duplicates,
            min_events=self.min_events,
            split=self.dataset_split,
        )
        return leave_one_out(interactions) if self.split == "leave_one_out" else split_by_time(interactions)


@dataclass
class RecommenderArguments(MethodArguments):
    """Which recommender."""

    architecture: Architecture = option(
        "deepfm",
        "Of the recommender: 'sasrec', causal self-attention; 'gru', a recurrent network; 'din', attention of every "
        "candidate to the history; 'deepfm', a factorisation machine beside a perceptron.",
    )
    hidden_size: Count = option(16, "Width of the items' embeddings.")
    max_length: Count = option(50, "Items of a history that are looked at, the newest.")
    num_hidden_layers: Count = option(2, "Layers of 'sasrec' and 'gru', hidden layers of the perceptrons.")
    num_attention_heads: Count = option(2, "Heads of 'sasrec'.")
    dropout: Annotated[float, Bounds(at_least=0, below=1)] = option(0.1, "Probability of dropout.")
    told_apart: Literal["candidates", "catalogue"] = option(
        "candidates",
        "What a recommender that learns alone (a teacher, or with --teachers none) tells the next item apart from: "
        "'candidates', causald_num_candidates - 1 others, drawn anew in every epoch; 'catalogue', all items, which "
        "takes longer.",
    )

    def make(self, items: Any, **config: Any) -> SequentialRecommenderForNextItem:
        """A new one for some items; `config` in place of these options.

        Raises:
            ValueError: options that do not go together.
        """
        sizes = {
            "architecture": self.architecture,
            "hidden_size": self.hidden_size,
            "max_length": self.max_length,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "dropout": self.dropout,
        }
        return SequentialRecommenderForNextItem.from_items(items, **{**sizes, **config})

    def rows(self, split: SplitInteractions, args: Any) -> NextItems:
        """What a recommender learns from that has no teachers."""
        negatives = args.causald_num_candidates - 1 if self.told_apart == "candidates" else None
        return NextItems(split, max_length=self.max_length, num_negatives=negatives, seed=args.seed)


def loaded_for(recommender: RecommenderArguments, split: SplitInteractions, args: Any) -> Loaded:
    """What a Trainer needs: a new recommender, and the rows of a split, those of the test as `test`.

    Raises:
        ValueError: options of the recommender that do not go together, or a part of the split without rows.
    """
    options: dict[str, Any] = {"max_length": recommender.max_length, "head_fraction": args.causald_head_fraction}
    parts: Any = {"train": "train", "eval": "validation", "test": "test"}
    rows = {name: NextItems(split, part, **options) for name, part in parts.items()}
    model = recommender.make(split.interactions.items, loss=args.causald_kind)
    remark = remark_on(split, rows["test"])
    return Loaded(model, rows, NextItemsCollator(), None, keeps_columns=False, remark=remark, metrics=None)


def remark_on(split: SplitInteractions, test: NextItems) -> str:
    """What the numbers are of, in words."""
    log = split.interactions
    tested = np.unique(test.users)
    heads = np.unique(test.users[test.groups == 1])
    return (
        f"{len(log)} events of {log.num_users} users with {log.num_items} items, split by {split.method}. Evaluated "
        f"on {len(test)} next items of {len(tested)} users in the test, each ranked among all items but those that "
        f"the user had before. Head: the {len(heads)} of them who were most active in training; tail: the other "
        f"{len(tested) - len(heads)}; gap: head minus tail. coverage@10: the share of the items that anybody is "
        "recommended; popularity@10: how popular these are, as the share of the items that are less so."
    )

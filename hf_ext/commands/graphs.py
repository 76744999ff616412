"""A graph and a network for training from the command line, and what came out: how many are positive, and which."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import Tensor

from hf_ext._arguments import Bounds, Count, Share
from hf_ext.data.graphs import PUSplit, check_graph, load_graph, unlabeled_nodes
from hf_ext.hub_cards.text import visible
from hf_ext.models import GraphPUConfig, GraphPUModel
from hf_ext.trainers.arguments import MethodArguments, option
from hf_ext.trainers.gpl import load_edge_weights

if TYPE_CHECKING:
    from torch_geometric.data import Data

#: the ranking of a trained folder
RANKED = "ranked.csv"
_SHOWN, _LONGEST = 5, 40  # nodes of the ranking that are printed, and characters of an id


@dataclass
class GraphArguments(MethodArguments):
    """Which graph, and what of its nodes is known."""

    dataset: str | None = option(
        None,
        "The graph, required without --nodes: two tables (--nodes, --edges), an npz file, a folder of geom-gcn's or "
        "planetoid's files, a Hub id or file of one row with edge_index and x, or 'digits-graph', which comes along.",
    )
    nodes: str | None = option(None, "Table of nodes, csv or parquet: an id, features, what is known.")
    edges: str | None = option(
        None, "Table of edges, required without --dataset: a csv or parquet file, the ids of both ends."
    )
    id_column: str = option("id", "Column of the nodes' ids, numbers or text.")
    source_column: str = option("source", "Column of the ids that edges come from.")
    target_column: str = option("target", "Column of the ids that edges lead to, as messages do.")
    feature_columns: list[str] | None = option(
        None, "Columns of features, numbers or one of lists of numbers; by default all others that are numeric."
    )
    positive_column: str | None = option(
        None, "Column that is 1 or true for nodes that are known to be positive; all others are unlabelled."
    )
    label_column: str | None = option(
        None, "Column of classes, of a graph that is known: some are called positive, and a share of these is known."
    )
    weight_column: str | None = option(None, "Column of the edges' weights, >= 0; without it all are 1.")
    directed: bool = option(False, "Edges lead from source to target alone; without this both ways.")
    positive_classes: list[str] | None = option(
        None, "Of a graph whose classes are known: the positive ones, names or numbers; by default the largest."
    )
    label_share: Share = option(0.5, "Of a graph whose classes are known: the share of positives that is known.")
    label_mechanism: Literal["scar", "features"] = option(
        "scar", "Which ones are known: 'scar', any alike; 'features', the likelier the more of a feature they have."
    )
    label_seed: Annotated[int, Bounds(at_least=0)] = option(0, "Seed that draws the known ones.")

    def load(self) -> "Data":
        """Read it, with a mask of known positives.

        Raises:
            ValueError: no graph named, or several; data, columns or values that cannot be used; options of known
                classes for a graph of which only positives are known.
        """
        tables = self.nodes is not None or self.edges is not None
        if bool(self.dataset) == tables or (tables and None in (self.nodes, self.edges)):
            named = ("dataset", "nodes", "edges")
            found = ", ".join(f"{name} {getattr(self, name)!r}" for name in named if getattr(self, name)) or "nothing"
            raise ValueError(
                f"dataset: found {found}, allowed are nodes with edges, two tables, or dataset, a file or folder of a "
                "published graph, a Hub id, or 'digits-graph'"
            )
        data = load_graph(
            self.dataset or None,
            nodes=self.nodes,
            edges=self.edges,
            id_column=self.id_column,
            source_column=self.source_column,
            target_column=self.target_column,
            feature_columns=self.feature_columns,
            positive_column=self.positive_column,
            label_column=self.label_column,
            weight_column=self.weight_column,
            undirected=not self.directed,
        )
        if data.get("positive_mask") is None:
            data = self._split(data)
        else:
            self._refuse_split()
        check_graph(data)
        return data

    def _refuse_split(self) -> None:
        for name in ("positive_classes", "label_share", "label_mechanism", "label_seed"):
            value, default = getattr(self, name), getattr(GraphArguments, name)
            if value != default:
                raise ValueError(
                    f"{name}: found {value!r} for a graph whose known positives are given, allowed is {default!r}"
                )

    def _split(self, data: "Data") -> "Data":
        if data.get("y") is None:
            raise ValueError(
                "positive_column: found None, and no label_column, allowed is a column that says which nodes are "
                "known to be positive, or of which class they are"
            )
        split = PUSplit(
            positive_classes=self._classes(data.get("class_names")),
            label_share=self.label_share,
            held_out=0.0,  # the trainer holds some out
            mechanism=self.label_mechanism,
            seed=self.label_seed,
        )
        return split(data)

    def _classes(self, names: Sequence[str] | None) -> list[int] | None:
        """The numbers of the positive classes."""
        if self.positive_classes is None:
            return None
        numbers = {name: number for number, name in enumerate(names or ())}
        for name in self.positive_classes:
            if name not in numbers and not str(name).isdecimal():
                allowed = ", ".join(map(visible, numbers)) or "numbers of classes"
                raise ValueError(f"positive_classes: found {name!r}, allowed are {allowed}")
        return [numbers[name] if name in numbers else int(name) for name in self.positive_classes]


@dataclass
class GraphModelArguments(MethodArguments):
    """Which network."""

    conv: Literal["gcn", "sage", "gat", "gcnii", "fagcn", "mlp"] = option(
        "gcn",
        "Its layers: 'gcn', 'sage' (means of neighbours), 'gat' (attention), 'gcnii' (many layers), 'fagcn' "
        "(neighbours that may be unlike), or 'mlp', which sees no edges.",
    )
    hidden_size: Count = option(16, "Width of its hidden layers.")
    num_layers: Count = option(2, "Number of layers, so of steps that a message travels.")
    heads: Count = option(4, "Heads of 'gat', which share hidden_size.")
    dropout: Annotated[float, Bounds(at_least=0, below=1)] = option(0.5, "Probability of dropout before every layer.")

    def make(self, data: "Data", **config: Any) -> GraphPUModel:
        """A new one for a graph's features; `config` are further values of its configuration.

        Raises:
            ValueError: options that do not go together.
        """
        names = ("conv", "hidden_size", "num_layers", "heads", "dropout")
        values = {name: getattr(self, name) for name in names}
        assert data.x is not None  # checked
        return GraphPUModel(GraphPUConfig(num_features=data.x.shape[1], **values, **config))


def unlabelled_of(data: "Data") -> Tensor:
    """Which nodes are to be found out about, bool `[N]`."""
    held_out = data.get("held_out_mask")
    return unlabeled_nodes(data) if held_out is None else unlabeled_nodes(data) & ~held_out


def remark_on(data: "Data", held_out: int) -> str:
    """What the numbers are of, in words; so many of the known positives are held out."""
    unlabelled, given = unlabelled_of(data), data.get("held_out_mask")
    known = data.positive_mask if given is None else data.positive_mask | given
    among = f", of which {held_out} are held out of training" if held_out else ""
    truth, shown = data.get("pu_y"), ""
    if truth is not None and bool((evaluated := unlabelled & (truth >= 0)).any()):
        shown = f"; {float((truth[evaluated] == 1).double().mean()):.1%} of these are positive in truth"
    return (
        f"A graph of {len(known)} nodes with {data.x.shape[1]} features, and {data.edge_index.shape[1]} directed "
        f"edges. {int(known.sum())} are known to be positive{among}, {int(unlabelled.sum())} are unlabelled{shown}."
    )


# ------------------------------------------------------------------------------------------------ what came out
def predicted(model: GraphPUModel, data: "Data", folder: str) -> Any:
    """What a model says of its training graph, with the weights of edges that were saved beside it, if any were."""
    edges = load_edge_weights(folder)
    return model.predict(data) if edges is None else model.predict(data.x, *edges)


def ranking_of(found: Any, data: "Data") -> str:
    """A table (csv) of the unlabelled nodes, best first: id, probability, and 1 where it is called positive."""
    ids, text = ids_of(data), io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["id", "probability", "positive"])
    probabilities, positive = found.probabilities.tolist(), found.positive.int().tolist()
    for node in found.ranked(among=unlabelled_of(data)).tolist():
        rows.writerow([ids[node], f"{probabilities[node]:.6g}", positive[node]])
    return text.getvalue()


def ids_of(data: "Data") -> Sequence[Any]:
    """The user's ids of the nodes, or their numbers."""
    return data.get("node_ids") or range(len(data.positive_mask))


def prior_in_words(model: GraphPUModel, data: "Data", method: str | float) -> str:
    """How many of the unlabelled nodes are positive, as far as was found out."""
    prior, interval, number = model.config.class_prior, model.config.prior_interval, int(unlabelled_of(data).sum())
    if prior is None:
        return "how many of the unlabelled nodes are positive was not estimated: that takes held-out positives"
    found = f"{prior:.1%} of the unlabelled nodes are positive, {prior * number:.0f} of {number}"
    if interval is None:
        return f"{found}, as was given"
    low, high = interval
    return f"about {found}, as far as {method} can tell (95 %: {low:.1%} to {high:.1%})"


def examples_of(found: Any, data: "Data") -> str:
    """The first nodes of the ranking, in words."""
    ids = ids_of(data)
    lines = [f"first of the unlabelled nodes (all are in {RANKED}):"]
    for node in found.ranked(k=_SHOWN, among=unlabelled_of(data)).tolist():
        name = " ".join(visible(str(ids[node])).split())
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        lines.append(f"  {shown}: {float(found.probabilities[node]):.3f}")
    return "\n".join(lines)

"""What came out of training a recommender: beside what it has to beat, for active users and for all others."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoModel

from hf_ext.data.interactions import NextItems
from hf_ext.hub_cards.text import visible
from hf_ext.metrics import RankingMetrics, item_knn_ranks, popularity_ranks, rank_targets

POPULARITY, ITEM_KNN = "popularity", "item-kNN"
#: columns of the printed table: a metric, and what it is called there
SHOWN = {
    "ndcg@10": "NDCG@10",
    "head_ndcg@10": "head",
    "tail_ndcg@10": "tail",
    "gap_ndcg@10": "gap",
    "hr@10": "HR@10",
    "auc": "AUC",
    "coverage@10": "coverage@10",
    "popularity@10": "popularity@10",
}
_EXAMPLES, _BEST, _NEWEST = 3, 3, 3  # users, recommendations each, items of the history that are shown
_LONGEST = 40  # characters of a title


def baselines(rows: NextItems) -> dict[str, dict[str, float]]:
    """Metrics of what knows only how popular items are, and of what knows which go together."""
    metrics = RankingMetrics(rows)
    return {POPULARITY: metrics.of(popularity_ranks(rows)), ITEM_KNN: metrics.of(item_knn_ranks(rows))}


def metrics_of(source: Any, rows: NextItems, device: Any) -> dict[str, float]:
    """Metrics of a saved recommender, or of a model."""
    model = AutoModel.from_pretrained(source) if isinstance(source, str) else source
    return RankingMetrics(rows).of(rank_targets(model.to(device), rows))


def table_of(systems: Mapping[str, Mapping[str, float]], method: str) -> str:
    """The systems' metrics side by side, one of them the method."""
    table = Table("system", title="on the test part")
    for name in SHOWN.values():
        table.add_column(name, justify="right")
    for system, metrics in systems.items():
        cells = (f"{metrics[name]:.3f}" if name in metrics else "-" for name in SHOWN)
        table.add_row(escape(visible(system)), *cells, style="bold" if system == method else None)
    text = StringIO()
    Console(file=text, width=110).print(table)
    return text.getvalue().rstrip()


def examples_of(model: Any, rows: NextItems) -> str:
    """What the model recommends to some users of a part, in words."""
    lines = ["for three of its users:"]
    log = rows.split.interactions
    firsts = [place for place in range(len(rows)) if place == 0 or rows.users[place] != rows.users[place - 1]]
    for place in firsts[:: max(1, len(firsts) // _EXAMPLES)][:_EXAMPLES]:
        history = rows[place]["exclude_ids"][None]
        found = model.recommend(history, k=_BEST)
        newest = [log.items.title(row) for row in history[0, -_NEWEST:].tolist()]
        dots = "..., " if history.shape[1] > _NEWEST else ""
        best = [model.items.title(row) for row in found.rows[0].tolist() if row]
        lines.append(f"  after {dots}{_listed(newest)}: {_listed(best) or 'nothing is left'}")
    return "\n".join(lines)


def _listed(titles: list[str]) -> str:
    plain = [" ".join(visible(title).split()) for title in titles]
    return ", ".join(title if len(title) <= _LONGEST else f"{title[: _LONGEST - 3]}..." for title in plain)


def loading_lines(folder: str, model: Any) -> str:
    """The lines that load a saved recommender and recommend by raw ids."""
    ids = model.items.ids[:2]
    return (
        "to use it:\n"
        "  import hf_ext  # or, where it is not installed: trust_remote_code=True below\n"
        "  from transformers import AutoModel\n"
        f"  print(AutoModel.from_pretrained({folder!r}).recommend({ids!r}, k=3).titles)"
    )

"""Which pictures a card has: of its results, of its methods' facts, of the terms of the training loss."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hf_ext.hub_cards.card import MethodCard, loss_curves

#: draws a picture into the file of that name
_Draw = Callable[[str], None]


def drawn_pictures(card: MethodCard) -> dict[str, bytes]:
    """All that the card's facts allow to draw, as PNG, by file; drawn where nobody else's files or links can lie."""
    drawn = {}
    with tempfile.TemporaryDirectory() as made:
        for file, (_, draw) in _pictures(card).items():
            draw(os.path.join(made, file))
            drawn[file] = Path(made, file).read_bytes()
    return drawn


def captions_of(card: MethodCard) -> dict[str, str]:
    """What these pictures show, by file."""
    return {file: caption for file, (caption, _) in _pictures(card).items()}


def _pictures(card: MethodCard) -> dict[str, tuple[str, _Draw]]:
    """By file: the caption, and what draws it."""
    from hf_ext.hub_cards.plots import plot_losses, plot_results  # matplotlib takes its time

    pictures: dict[str, tuple[str, _Draw]] = {}
    metrics = {result.metric for result in card.overall}
    for metric in sorted(metrics):
        rows = [result for result in card.overall if result.metric == metric]
        # two numbers need no picture
        if len({row.system for row in rows}) > 1 and (len(rows) > 2 or any(row.std for row in rows)):
            file = "results.png" if len(metrics) == 1 else f"results_{len(pictures)}.png"
            pictures[file] = (f"All systems: {metric}", partial(plot_results, rows))
    for method in card.about:
        for picture in method.pictures:
            if picture.fact in card.facts:
                pictures[picture.file] = (picture.caption, partial(picture.draw, card.facts[picture.fact]))
    if any(len(points) > 1 for points in loss_curves(card.log_history, card.loss_terms).values()):
        draw = partial(plot_losses, card.log_history, terms=card.loss_terms)
        pictures["losses.png"] = ("Terms of the training loss", draw)
    return pictures

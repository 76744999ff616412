"""What a card says of a federation: how it went, and what was measured at its clients; nothing of their data."""

from typing import Any

from hf_ext.hub_cards import Result
from hf_ext.trainers.federated.ledger import EVALUATE, Ledger

#: the part of the data that clients measure on
AT_CLIENTS = "clients' own data"


def told_of(ledger: Ledger, strategy: str) -> dict[str, Any]:
    """Names and values for the card.

    Args:
        ledger: of the server.
        strategy: its name.
    """
    taken = sorted({len(clients) for clients in ledger.participants.values()}) or [0]
    return {
        "strategy": strategy,
        "rounds": max(ledger.participants, default=0),
        "clients known": ledger.num_clients,
        "clients taken per round": " to ".join(map(str, dict.fromkeys([taken[0], taken[-1]]))),
        "replies left out": len(ledger.left_out),
        "bytes to a client per round": ledger.bytes_sent,
        "bytes from a client per round": ledger.bytes_received,
    }


def measured_at_clients(ledger: Ledger, title: str) -> list[Result]:
    """The last round's metrics of the clients that were asked for them, weighted by their numbers of rows.

    Args:
        ledger: of the server.
        title: of what the results are of.
    """
    history = ledger.history[EVALUATE]
    metrics = history[max(history)] if history else {}
    numbers = {name.removeprefix("eval_"): value for name, value in metrics.items() if isinstance(value, int | float)}
    return [Result(title, name, value, is_method=True, group=AT_CLIENTS) for name, value in numbers.items()]

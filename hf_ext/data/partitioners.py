"""Ways to divide the rows of a data set among the clients of a federation.

Draws are those of `numpy.random.default_rng(seed)`. Another version of numpy may draw otherwise: a split that has to
stay is written down with `Partition.to_dict`, and compared by `Partition.digest`.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from hf_ext._arguments import Bounds, Count, Positive, check_value
from hf_ext.data.labels import label_names, label_values
from hf_ext.data.partition import Indices, Partition

#: times that proportions are drawn before it is said that they leave a client with too few rows
DRAWS = 1000
_Seed = Annotated[int, Bounds(at_least=0)]


def dirichlet_partition(
    labels: Any,
    num_clients: int,
    *,
    alpha: float,
    seed: int = 0,
    min_size: int = 1,
    column: str | None = None,
) -> Partition:
    """Every class is shared out in proportions of its own, drawn from a symmetric Dirichlet distribution.

    The usual way to make clients differ in their labels: the smaller `alpha`, the more they do. The proportions of all
    classes are drawn again as long as a client would hold fewer than `min_size` rows, `DRAWS` times at most.

    Args:
        labels: of all rows, `[N]`, integers >= 0 or names; or a `datasets.Dataset`, whose `column` holds them.
        num_clients: how many.
        alpha: concentration; towards infinity all clients get the same share of every class.
        seed: draws proportions and rows.
        min_size: rows that every client holds at least.
        column: of labels, for a `Dataset`.

    Raises:
        ValueError: labels as `label_values` refuses them, values out of bounds, or no draw that left every client
            `min_size` rows.
    """
    _check(num_clients, seed)
    check_value("alpha", alpha, Positive)
    check_value("min_size", min_size, Count)
    classes = _class_numbers(label_values(labels, column))[1]
    _enough(len(classes), num_clients, min_size)
    rng = np.random.default_rng(seed)
    sizes = np.bincount(classes)
    for _ in range(DRAWS):
        counts = _shares(rng, sizes, num_clients, alpha)
        if counts.sum(axis=0).min() >= min_size:
            return _dealt(rng, classes, counts)
    raise ValueError(
        f"alpha: found {alpha}, with which {DRAWS} draws left one of num_clients={num_clients} clients fewer than "
        f"min_size={min_size} rows ({len(classes)} rows, {len(sizes)} classes), allowed are a larger alpha, fewer "
        "clients or a smaller min_size"
    )


def classes_partition(
    labels: Any, num_clients: int, *, classes_per_client: int, seed: int = 0, column: str | None = None
) -> Partition:
    """Every client holds so many classes, and every class is shared equally by those that hold it.

    Classes are dealt such that the numbers of their holders differ by one at most, so that every class is held.

    Args:
        labels, column: as for `dirichlet_partition`.
        num_clients: how many.
        classes_per_client: how many each of them holds, of those that occur.
        seed: draws classes and rows.

    Raises:
        ValueError: labels as `label_values` refuses them, more classes per client than there are, fewer places than
            classes, or a class of fewer rows than holders.
    """
    _check(num_clients, seed)
    check_value("classes_per_client", classes_per_client, Count)
    names, classes = _class_numbers(label_values(labels, column))
    if classes_per_client > len(names):
        raise ValueError(f"classes_per_client: found {classes_per_client}, allowed are at most {len(names)} classes")
    _enough(len(classes), num_clients, classes_per_client)
    rng = np.random.default_rng(seed)
    held = np.zeros((len(names), num_clients), dtype=np.int64)
    for client in range(num_clients):  # those with the fewest holders so far, in random order
        held[np.lexsort((rng.random(len(names)), held.sum(axis=1)))[:classes_per_client], client] = 1
    sizes, holders = np.bincount(classes), held.sum(axis=1)
    if not holders.all():
        left = ", ".join(map(str, names[holders == 0]))
        raise ValueError(
            f"classes_per_client: found {classes_per_client} of num_clients={num_clients}, which leaves nobody for "
            f"the classes {left}, allowed are at least {-(-len(names) // num_clients)}"
        )
    if (short := np.flatnonzero(sizes < holders)).size:
        raise ValueError(
            f"labels: found {sizes[short[0]]} rows of class {names[short[0]]}, allowed are {holders[short[0]]} or "
            "more, one for each client that holds it"
        )
    # the first `sizes % holders` holders get a row more, in an order that is drawn anew for every class
    place = np.where(held, rng.random(held.shape), np.inf).argsort(axis=1).argsort(axis=1)
    return _dealt(rng, classes, held * (sizes // holders)[:, None] + (place < (sizes % holders)[:, None]))


def iid_partition(num_rows: int, num_clients: int, *, seed: int = 0) -> Partition:
    """Rows are dealt at random, in numbers that differ by one at most.

    Raises:
        ValueError: values out of bounds, or more clients than rows.
    """
    _check(num_clients, seed)
    check_value("num_rows", num_rows, Count)
    _enough(num_rows, num_clients, 1)
    return _equally(np.random.default_rng(seed), np.zeros(num_rows, dtype=np.int64), num_clients)


def natural_partition(
    values: Any, *, clients_per_value: int = 1, seed: int = 0, column: str | None = None
) -> Partition:
    """One client for every value of a column, such as a writer, a hospital or a domain, in sorted order.

    Clients are called as the value is, or its `ClassLabel` names it; of several, as in `"semeion/0"`.

    Args:
        values: of all rows, `[N]`, integers >= 0 or names; or a `datasets.Dataset`, whose `column` holds them.
        clients_per_value: among so many clients the rows of a value are dealt, in numbers that differ by one at most.
        seed: draws who gets which; of no effect with one client per value.
        column: for a `Dataset`.

    Raises:
        ValueError: values as `label_values` refuses labels, or one of fewer rows than clients.
    """
    _check(clients_per_value, seed, "clients_per_value")
    kinds, numbers = _class_numbers(label_values(values, column, argument="values"))
    known = label_names(values, column)
    names = [known[kind] if known else str(kind) for kind in kinds]
    sizes = np.bincount(numbers)
    if (short := np.flatnonzero(sizes < clients_per_value)).size:
        raise ValueError(
            f"clients_per_value: found {clients_per_value}, allowed are at most {sizes[short[0]]}, the rows of "
            f"{names[short[0]]!r}"
        )
    if clients_per_value > 1:
        names = [f"{name}/{number}" for name in names for number in range(clients_per_value)]
    return _equally(np.random.default_rng(seed), numbers, clients_per_value, names)


# --------------------------------------------------------------------------------------------- parts
def _check(num_clients: int, seed: int, name: str = "num_clients") -> None:
    check_value(name, num_clients, Count)
    check_value("seed", seed, _Seed)


def _enough(rows: int, num_clients: int, each: int) -> None:
    if rows < num_clients * each:
        least = f"{each} for each client" if each > 1 else "one for each client"
        raise ValueError(
            f"num_clients: found {num_clients} for {rows} rows, allowed are so many that there is {least}"
        )


def _class_numbers(values: NDArray[Any]) -> tuple[NDArray[Any], Indices]:
    """The classes that occur, sorted, and which of them every row is of."""
    names, numbers = np.unique(values, return_inverse=True)
    return names, numbers.astype(np.int64)


def _shares(rng: np.random.Generator, sizes: Indices, num_clients: int, alpha: float) -> Indices:
    """Rows of each class for each client, `[classes, clients]`, in proportions from the Dirichlet distribution."""
    ends = rng.dirichlet(np.full(num_clients, alpha), size=len(sizes)).cumsum(axis=1)
    if not np.isfinite(ends).all():
        raise ValueError(f"alpha: found {alpha}, allowed are numbers from which proportions can be drawn")
    ends = (ends * sizes[:, None]).round().astype(np.int64)
    ends[:, -1] = sizes  # sums of proportions are 1 up to rounding
    return np.diff(np.minimum(ends, sizes[:, None]), axis=1, prepend=0)


def _dealt(rng: np.random.Generator, classes: Indices, counts: Indices) -> Partition:
    """Random rows of each class for each client, in these numbers, `[classes, clients]`."""
    shuffled = rng.permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    owners = np.empty(len(classes), dtype=np.int64)
    owners[by_class] = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    return _partition(owners, counts.shape[1])


def _equally(rng: np.random.Generator, groups: Indices, each: int, names: Sequence[str] | None = None) -> Partition:
    """The rows of every group, dealt among so many clients of its own."""
    sizes = np.bincount(groups)
    shuffled = rng.permutation(len(groups))
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    place = np.arange(len(groups)) - np.repeat(sizes.cumsum() - sizes, sizes)  # within the group
    owners = np.empty(len(groups), dtype=np.int64)
    owners[by_group] = groups[by_group] * each + place % each
    return _partition(owners, len(sizes) * each, names)


def _partition(owners: Indices, num_clients: int, names: Sequence[str] | None = None) -> Partition:
    ends = np.bincount(owners, minlength=num_clients).cumsum()[:-1]
    indices = np.split(np.argsort(owners, kind="stable"), ends)
    return Partition(tuple(indices), tuple(names or map(str, range(num_clients))), len(owners))

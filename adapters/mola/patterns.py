"""Regular expressions of a configuration that would take forever to match.

PEFT matches them with Python's `re`, which tries one way after another: `(a+)+$` has 2^N of them in a name of N
letters, and no time limit stops it. A configuration may come from anybody's repo, so its patterns are measured before.
"""

import importlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

_parser: Any = importlib.import_module("re._parser")  # what `re` itself parses with; it has no public name
_MOST_WAYS = 2**18
_WAYS = 32  # of one repeat in a name, about; where a letter follows, it is one of the few places with that letter
_WAYS_TO_A_LETTER = 8
_PLAIN = ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "CATEGORY", "RANGE")


def check_patterns(config: Any) -> None:
    """Refuse the patterns of a MoLAConfig that are no regular expressions, or have too many ways to match.

    Raises:
        ValueError: names the argument and the pattern.
    """
    for name, pattern in _patterns(config):
        try:
            re.compile(pattern)
            ways = _ways(_parser.parse(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{name}: found {pattern[:100]!r}, allowed is a regular expression ({reason})") from None
        if ways > _MOST_WAYS:
            raise ValueError(
                f"{name}: found {pattern[:100]!r}, which may take forever to match, allowed is a regular expression "
                "with few repeats and alternatives, and none within a repeat"
            )


def _patterns(config: Any) -> Iterator[tuple[str, str]]:
    """All that PEFT takes for a regular expression; names in lists of modules to save are, within one of its own."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        if isinstance(pattern := getattr(config, name), str):
            yield name, pattern
    for name in ("layers_pattern", "modules_to_save", "task_heads", "rank_pattern", "alpha_pattern"):
        patterns = getattr(config, name)
        if not isinstance(patterns, str):
            yield from ((name, pattern) for pattern in patterns or () if isinstance(pattern, str))


def _ways(items: Iterable[tuple[Any, Any]]) -> float:
    """How many ways to match a name there are, about; a bound of what is tried."""
    ways, items = 1.0, list(items)
    for place, (kind, detail) in enumerate(items):
        following = items[place + 1][0].name if place + 1 < len(items) else ""
        ways *= _ways_of(kind.name, detail, before_a_letter=following == "LITERAL")
    return ways


def _ways_of(kind: str, detail: Any, *, before_a_letter: bool) -> float:
    if kind in _PLAIN:
        return 1
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, most, body = detail
        inner = _ways(body)
        if most == 1:
            return inner + 1 - least
        if inner > 1:  # a repeat or an alternative within a repeat
            return math.inf
        return 1 if least == most else min(int(most) - least + 1, _WAYS_TO_A_LETTER if before_a_letter else _WAYS)
    if kind == "BRANCH":
        return sum(_ways(branch) for branch in detail[1])
    if kind == "SUBPATTERN":
        return _ways(detail[-1])
    if kind == "ATOMIC_GROUP":
        return _ways(detail)
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _ways(detail[1])
    return math.inf  # references to groups, whose length is not known

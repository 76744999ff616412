"""Calls of the Hub: tried again where it fails, ended where it never answers or asks for too long a pause."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session, parse_ratelimit_headers

#: seconds before the first retry; every further pause is twice as long
PAUSE = 1.0
#: seconds that the Hub may ask to wait; its own limits are for five minutes
LONGEST_PAUSE = 300.0
#: seconds without a byte after which a request has failed: the client itself would wait for ever
SILENCE = 45.0
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_NOT_DONE = frozenset({429, 503})
_LOCK = threading.Lock()
_T = TypeVar("_T")


def retry(call: Callable[[], _T], retries: int, only_if_not_done: bool = False) -> _T:
    """What `call` returns, after as many retries.

    Args:
        call: asks the Hub.
        retries: how often to try again after a dropped connection, a timeout, or an answer that may pass.
        only_if_not_done: whether to try again only where the Hub has surely done nothing.

    Raises:
        HfHubHTTPError: the Hub refused, failed every time, or asked for a pause of more than `LONGEST_PAUSE`.
        HTTPError: the connection failed every time, or the Hub was silent for `SILENCE`.
    """
    pause = PAUSE
    for left in range(retries, -1, -1):
        try:
            with _bounded():
                return call()
        except (HTTPError, json.JSONDecodeError) as error:  # the latter: a proxy's page where the client awaits JSON
            asked = _asked_pause(error.response) if isinstance(error, HfHubHTTPError) else None
            if not left or not _is_transient(error, only_if_not_done) or (asked or 0) > LONGEST_PAUSE:
                if "Timeout" in type(error).__name__:
                    error.add_note(f"found a server that answered nothing for {SILENCE:.0f} s")
                raise
        except RuntimeError as error:  # how the client wraps a failed upload, after retries of its own
            if isinstance(error.__cause__, HTTPError):
                error.__cause__.add_note(str(error))
                raise error.__cause__ from None
            raise
        time.sleep(pause if asked is None else asked)
        pause *= 2
    raise AssertionError("the last round returns or raises")


@contextmanager
def _bounded() -> Iterator[None]:
    """The client's requests end while this lasts, also those that it repeats by itself: it is the process's only one.

    So another push of the process waits.
    """
    with _LOCK:
        yield from _with_bounds(get_session())


def _with_bounds(client: Any) -> Iterator[None]:
    timeout, answered = client.timeout, client.event_hooks["response"]
    client.timeout = tuple(
        SILENCE if seconds is None else seconds for seconds in (timeout.connect, timeout.read, timeout.write, None)
    )
    client.event_hooks = {**client.event_hooks, "response": [*answered, _refuse_long_pause]}
    try:
        yield
    finally:
        client.timeout, client.event_hooks = timeout, {**client.event_hooks, "response": answered}


def _refuse_long_pause(response: Any) -> None:
    """Raise where the client would wait as long as it is told, be it years."""
    asked = _asked_pause(response)
    if response.status_code in _TRANSIENT and asked is not None and asked > LONGEST_PAUSE:
        response.read()
        raise HfHubHTTPError(
            f"{response.status_code} for {response.request.url}: found a server that asks to wait for {asked:.0f} s, "
            f"allowed are up to {LONGEST_PAUSE:.0f} s",
            response=response,
        )


def _is_transient(error: Exception, only_if_not_done: bool) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (_NOT_DONE if only_if_not_done else _TRANSIENT)
    return not only_if_not_done


def _asked_pause(response: Any) -> float | None:
    """Seconds that the Hub asks to wait, if it does."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(min(limit.reset_in_seconds, 10**15))
    asked = response.headers.get("Retry-After", "").strip()
    # no more digits than a number of seconds that is one has
    return float(asked[:15]) if asked.isascii() and asked.isdigit() else None

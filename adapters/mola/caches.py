"""A router's weights stay with what a sequence is continued from: its cache, or the outputs of its encoder."""

import copy
from typing import Any

import torch
from torch import Tensor

#: under which models take what came before the tokens of a call; the first three are one, renamed in transformers 5.24
_CACHES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
_KEPT = "_mola_routing"
#: the argument of a model that reads several sequences in one row, from which no router can tell them
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "cu_seq_lens", "seq_idx", "block_table")


class _Kept:
    """Adapter name -> weights `[B, E]` of a cache's rows."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}


class _Following:
    """A method of a cache that does to the kept routing what it does to the rows.

    It holds a shallow copy that shares the cache's layers, not the cache: a cycle would keep memory until the next
    garbage collection. A deep copy of the cache gets copies of all three.
    """

    def __init__(self, cache: Any, name: str, kept: _Kept) -> None:
        self.cache = cache
        self.name = name
        self.kept = kept

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.cache, self.name)(*args, **kwargs)
        if self.name in ("reset", "crop"):
            if not is_filled(self.cache):
                self.kept.weights = {}
            return result
        argument = next(iter((*args, *kwargs.values())))
        for adapter, weights in self.kept.weights.items():
            if self.name == "batch_repeat_interleave":
                self.kept.weights[adapter] = weights.repeat_interleave(argument, dim=0)
            else:
                self.kept.weights[adapter] = weights[torch.as_tensor(argument, device=weights.device)]
        return result


_FOLLOWED = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset", "crop")


def cache_in(values: Any) -> Any:
    """The cache among a call's inputs or outputs, or None."""
    if isinstance(values, dict):
        return next((values[name] for name in _CACHES if values.get(name) is not None), None)
    if isinstance(values, tuple):
        return next((value for value in values if hasattr(value, "get_seq_length")), None)
    return None


def encoder_states(inputs: dict[str, Any]) -> Tensor | None:
    """The states `[B, length, width]` in the encoder's outputs among a call's inputs, if there."""
    outputs = inputs.get("encoder_outputs")
    states = outputs if isinstance(outputs, Tensor) or not outputs else outputs[0]
    return states if isinstance(states, Tensor) else None


def is_filled(cache: Any) -> bool:
    """Whether a cache holds tokens. Looks at a tensor of its own in caches of fixed size, which stalls a device."""
    if isinstance(cache, list | tuple):
        return len(cache) > 0
    linear = getattr(cache, "is_linear", [])
    if isinstance(linear, list) and linear and all(linear):
        return bool(cache.has_previous_state())
    length = getattr(cache, "get_seq_length", None)
    return length is not None and int(length()) > 0


def keep(cache: Any, weights: dict[str, Tensor]) -> None:
    """Keep routing weights `[B, E]` with a cache; what moves, repeats or drops its rows does so to the weights."""
    if torch.compiler.is_compiling() or not hasattr(cache, "__dict__"):
        return  # its next call outside of `generate` finds nothing and is refused
    kept = getattr(cache, _KEPT, None)
    if kept is None:
        kept = _Kept()
        twin = copy.copy(cache)
        for name in _FOLLOWED:
            if hasattr(twin, name):
                setattr(cache, name, _Following(twin, name, kept))
        setattr(cache, _KEPT, kept)
    kept.weights.update(weights)


def keep_with_encoder_outputs(outputs: Any, weights: dict[str, Tensor]) -> None:
    """Keep routing weights with what an encoder returned, for decoders that are called with it."""
    states = encoder_states({"encoder_outputs": outputs})
    if not torch.compiler.is_compiling() and states is not None:
        setattr(states, _KEPT, dict(weights))


def kept_routing(inputs: dict[str, Any], name: str) -> Tensor | None:
    """Weights of the sequences that a call continues; `None` for a call that starts with its prompt.

    Raises:
        ValueError: the call continues sequences, and no routing was kept with them.
    """
    cache = cache_in(inputs)
    for packed in _PACKED:
        if inputs.get(packed) is not None:
            raise ValueError(
                f"{packed}: found sequences in one row, allowed with routing='router' is one sequence a row (padded "
                "batches; generate without continuous batching)"
            )
    kept = getattr(cache, _KEPT, None)
    if kept is not None and name in kept.weights and not _is_known_empty(cache):
        return kept.weights[name]
    if inputs.get("encoder_outputs") is not None:
        weights = getattr(encoder_states(inputs), _KEPT, {}).get(name)
        if weights is None:
            raise ValueError(
                "encoder_outputs: found outputs whose routing is not known, allowed with routing='router' are those "
                "of this model's get_encoder() as they were returned, or the encoder's inputs in their place"
            )
        return weights
    if cache is not None and is_filled(cache):
        raise ValueError(
            f"cache: found a {type(cache).__name__} of sequences that adapter {name!r} did not route, allowed with "
            "routing='router' is one that this model filled with that adapter active, or the whole sequence without "
            "a cache"
        )
    return None


def _is_known_empty(cache: Any) -> bool:
    """Without a look at a device."""
    length = getattr(cache, "get_seq_length", None)
    linear = getattr(cache, "is_linear", [])
    if length is None or (isinstance(linear, list) and linear and all(linear)):
        return False
    found = length()
    return isinstance(found, int) and found == 0

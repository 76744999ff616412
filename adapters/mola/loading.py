"""The calls of peft and transformers that load and save adapters, for MoLA: whole, or not at all.

They put an adapter's layers into the model before they look at its weights. Here the tuner learns that what it makes
is for weights that lie somewhere, and a model on which loading failed becomes what it was. Adapters of other types go
through untouched. `hf_ext/_registration.py` says which methods these functions are put around.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from hf_ext.adapters._register import HfExtPeftType
from hf_ext.adapters._unchanged import State, unchanged_on_error
from hf_ext.adapters.mola.safety import SavedTensors, Source, saved_tensors, source_of


@dataclass
class Load:
    """An adapter that is being loaded.

    Attributes:
        source: where its weights are; None if they are handed over.
        from_config: whether the place that the configuration was read from counts first.
        before: the base model before an adapter of ours went in, if one did.
    """

    source: Source | None
    from_config: bool = False
    before: State | None = None

    def tensors(self, config: PeftConfig) -> SavedTensors:
        """The saved ones; see `saved_tensors`."""
        source = (self.from_config and source_of(config)) or self.source
        return SavedTensors() if source is None else saved_tensors(source)


_current: ContextVar[Load | None] = ContextVar("load", default=None)


def current_load() -> Load | None:
    """What is being loaded, if anything is."""
    return _current.get()


@contextmanager
def _loading(load: Load) -> Iterator[Load]:
    token = _current.set(load)
    try:
        yield load
    except BaseException:
        if load.before is not None:
            load.before.restore()
        raise
    finally:
        _current.reset(token)


def peft_from_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftModel.from_pretrained`."""

    def from_pretrained(cls: type, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with _loading(Load(Source.of(model_id, kwargs))):
                return original(cls, model, model_id, *args, **kwargs)
        except KeyError as error:
            if error.args != ("peft_type",):
                raise
            raise ValueError(
                f"{CONFIG_NAME}: found no peft_type in that of {str(model_id)!r}, allowed is one"
            ) from None

    return from_pretrained


def peft_load_adapter(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftModel.load_adapter`, of a further adapter or anew of one that is there."""

    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        if self.peft_type != HfExtPeftType.MOLA:
            return original(self, model_id, adapter_name, *args, **kwargs)
        around = current_load()
        with unchanged_on_error(self), _loading(Load(Source.of(model_id, kwargs))) as load:
            checked = around is not None and around.before is not None  # by the tuner, as it made the layers
            if adapter_name in self.peft_config and not checked:
                self.base_model.check_saved(adapter_name, load.tensors(self.peft_config[adapter_name]))
            result = original(self, model_id, adapter_name, *args, **kwargs)
            _check_names(str(model_id), adapter_name, result.missing_keys, result.unexpected_keys)
            return result

    return load_adapter


def transformers_load_adapter(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftAdapterMixin.load_adapter` of transformers' models."""
    signature = inspect.signature(original)

    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        options = given.get("load_config")
        name = given.get("peft_model_id") or getattr(options, "pretrained_model_name_or_path", None)
        download = {**getattr(options, "download_kwargs", {}), **(given.get("adapter_kwargs") or {})}
        in_files = given.get("adapter_state_dict") is None and name is not None
        with _loading(Load(Source.of(name, download) if in_files else None, from_config=in_files)) as load:
            result = original(self, *args, **kwargs)
            if load.before is not None:
                adapter = given.get("adapter_name") or "default"
                _check_names(str(name), adapter, result.missing_keys, result.unexpected_keys)
            return result

    return load_adapter


def _check_names(name: str, adapter_name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """What the loading call says: it may have renamed tensors, or not, as nobody could know before."""
    # peft and transformers take any name with the adapter's in it, which may be a letter, for one of the adapter's
    own = re.compile(rf"\.(mola_\w+|modules_to_save)\.{re.escape(adapter_name)}(\.|$)")
    missing = [key for key in missing if own.search(key)]
    for what, keys in (("no tensor for", sorted(missing)), ("a tensor for an unknown", sorted(unexpected))):
        if keys:
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME}: found {what} {keys[0]!r} ({len(keys)} in all) in {name!r}, allowed are "
                "the names that the base model has now (`key_mapping` renames what is loaded)"
            )


def peft_save_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftModel.save_pretrained`, which writes no file that is then refused."""

    def save_pretrained(
        self: Any, save_directory: Any, safe_serialization: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        if self.peft_type == HfExtPeftType.MOLA and not safe_serialization:
            raise ValueError(
                f"safe_serialization: found {safe_serialization!r}, allowed is True: MoLA adapters are never read "
                "from a pickle"
            )
        return original(self, save_directory, safe_serialization, *args, **kwargs)

    return save_pretrained

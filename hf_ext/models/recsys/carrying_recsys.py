"""Models that know what their items are: told once, saved and loaded with the weights."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import cached_file

from .items_recsys import ITEMS_NAME, ItemTable, check_items

if TYPE_CHECKING:
    from typing import Self

#: keywords of `from_pretrained` that say where a file is
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ItemsMixin:
    """Ids and titles of the rows of a model, in a file beside its weights."""

    config: Any
    _items: ItemTable | None = None

    @classmethod
    def from_items(cls, items: Any, **config: Any) -> "Self":
        """A new model for some items.

        Args:
            items: anything that has `ids` and `titles`, such as an `ItemTable`.
            **config: of `SequentialRecommenderConfig`, but for `num_items`.

        Raises:
            ValueError: see `set_items`.
        """
        kind: Any = cls
        table = check_items(items, len(getattr(items, "ids", ())))
        model: Any = kind(kind.config_class(num_items=len(table), **config))
        model.set_items(table)
        return model

    @property
    def items(self) -> ItemTable | None:
        """Raw ids and titles by row; None if nobody has said."""
        return self._items

    def set_items(self, items: Any) -> None:
        """Say what the rows are; it is saved with the model.

        Args:
            items: anything that has `ids`, of every row from 1 on, and `titles` (text, or None for none); None for
                none.

        Raises:
            ValueError: ids that are not integers or text or not unique, or not as many as the model has rows.
        """
        self._items = None if items is None else check_items(items, self.config.num_items)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save, with the items; a file of items of another model in the same folder goes."""
        if kwargs.get("is_main_process", True) and not Path(save_directory).is_file():
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            if self._items is None:
                Path(save_directory, ITEMS_NAME).unlink(missing_ok=True)
            else:
                self._items.save(save_directory)
        parent: Any = super()
        parent.save_pretrained(save_directory, *args, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike[str]) -> Any:
        """Those of files that are there before a model is saved and pushed; the items are saved already, yet new."""
        parent: Any = super()
        stamps = parent._get_files_timestamps(working_dir)
        return {name: stamp for name, stamp in stamps.items() if name != ITEMS_NAME}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, with the items that were saved with the model.

        Raises:
            ValueError: see `LoadedWhole.from_pretrained`; or a file of items that is none, or of another number.
            OSError: no weights there.
        """
        parent: Any = super()
        loaded = parent.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        hub = {name: kwargs[name] for name in _HUB if kwargs.get(name) is not None}
        if pretrained_model_name_or_path is not None:
            file = cached_file(
                pretrained_model_name_or_path, ITEMS_NAME, _raise_exceptions_for_missing_entries=False, **hub
            )
            if file is not None:
                model.set_items(ItemTable.load(file, model.config.num_items))
        return loaded

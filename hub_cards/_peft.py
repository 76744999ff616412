"""peft writes into `README.md` whenever it saves; a card of ours is left as it is."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_ext.hub_cards.saved import is_ours

if TYPE_CHECKING:
    from peft import PeftModel


def sparing_our_cards(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftModel.create_or_update_model_card` that passes over cards that `create_card` wrote.

    The original would replace the tags and the base model's name, by a local path if the model came from one.
    """

    def create_or_update_model_card(self: "PeftModel", output_dir: str) -> Any:
        return None if is_ours(output_dir) else original(self, output_dir)

    return create_or_update_model_card

"""peft writes into `README.md` whenever it saves; a card of ours is left as it is."""

import functools
from typing import Any

from peft import PeftModel

from hf_ext.hub_cards.create import is_ours


def keep_cards() -> None:
    """Let `PeftModel.save_pretrained` pass over cards that `create_card` wrote. Idempotent.

    peft would replace the tags and the base model's name, by a path of this machine if the model came from one.
    """
    original = PeftModel.create_or_update_model_card
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def create_or_update_model_card(self: PeftModel, output_dir: str) -> Any:
        return None if is_ours(output_dir) else original(self, output_dir)

    PeftModel.create_or_update_model_card = create_or_update_model_card  # type: ignore[method-assign]


keep_cards()

"""Model cards and publishing, in any Trainer whose mixin names its method."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from hf_ext._files import replaced_file
from hf_ext.hub_cards.callback import CardCallback
from hf_ext.hub_cards.create import create_card, is_handwritten
from hf_ext.hub_cards.push import push_folder

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


_logger = logging.get_logger(__name__)
#: what of a checkpoint is the model
_MODEL_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "*.py"),
)


class CardMixin(_Base):
    """Trainer's card and pushes become ours where `method` is a key of `hub_cards.METHODS`."""

    method: str | None = None
    data_remark: str = ""  # how the data were used, for the card
    push_in_progress: Any  # of Trainer, which gives no type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: collects the facts of the model card; None for a mixin without `method`
        self.card: CardCallback | None = None
        if self.method is not None:
            methods = [vars(kind).get("method") for kind in type(self).__mro__]
            self.card = CardCallback(self.method, [name for name in methods if name and name != self.method])
            self.add_callback(self.card)

    def card_facts(self) -> dict[str, Any]:
        """Arguments of `hub_cards.MethodCard` that this run knows. Cooperative: `super().card_facts() | {...}`."""
        assert self.card is not None  # asked for by create_model_card alone
        remark = {"dataset_description": self.data_remark} if self.data_remark else {}
        return self.card.card_facts() | remark

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the method's card into `output_dir`, or Trainer's own for a mixin without `method`.

        Of Trainer's arguments the method's card has no use for `language`, `tasks`, `dataset_tags` and `dataset_args`.
        A `README.md` that somebody wrote or changed is kept, with a warning, and so are their pictures.
        """
        if self.card is None:
            super().create_model_card(
                language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
            )
        elif self.is_world_process_zero():
            folder = str(self.args.output_dir)
            given: dict[str, Any] = {
                "model_name": model_name,
                "license": license,
                "tags": [tags] if isinstance(tags, str) else tags,
                "base_model": finetuned_from,
                "dataset": ", ".join(dataset) if isinstance(dataset, list) else dataset,
            }
            given = {name: value for name, value in given.items() if value is not None}
            if is_handwritten(folder):
                warnings.warn(
                    f"{folder}/README.md holds text of somebody's: it is kept, no card is made", stacklevel=2
                )
            else:
                create_card(folder, self.method, run=self.card_facts(), **given)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, write the card and publish `output_dir` with `hub_cards.push_folder`; Trainer's own without `method`.

        Unlike Trainer's it sends no pickle (`training_args.bin`) and tries again where the Hub fails. A `README.md`
        that somebody wrote or changed is published as it is.

        `push_to_hub=True` publishes every save in the same way, in the background, with `hub_strategy="every_save"`,
        and only what `save_model` or this method saves with "end". "checkpoint" and "all_checkpoints" do what
        "every_save" does: the states that a run resumes from are pickles and stay at home. Each save is a commit of
        its own, so the repo's history has the weights of all. As with Trainer's, a save that comes while an earlier
        one is being sent is left out; with `hub_always_push=True` training waits instead.

        Returns:
            The commit, or its future if not `blocking`; None on all processes but the first.
        """
        if self.card is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self._finish_current_push()  # it reads the files that are written now
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = self._with_card(commit_message, token, revision, private, **kwargs)
        return push() if blocking else HfApi().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.card is None:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # copied, as Trainer does: saving the model again would take all processes, and checkpoints are rotated out
        folder = str(self.args.output_dir)
        for pattern in _MODEL_FILES:
            for file in Path(checkpoint_folder).glob(pattern):
                with replaced_file(Path(folder) / file.name) as new:
                    shutil.copyfile(file, new)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        job = HfApi().run_as_future(self._with_card(f"Training in progress, {done}"))
        job.add_done_callback(_warn_of_failure)  # nobody asks for its result
        jobs: Any = [job]  # what Trainer gives, too, whatever the annotation says
        self.push_in_progress = PushInProgress(jobs)

    def _with_card(
        self,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Callable[[], CommitInfo]:
        """Write the card into `output_dir`; returns the call that publishes the folder."""
        folder = os.path.abspath(str(self.args.output_dir))
        repo_id = self.hub_model_id or self.args.hub_model_id or os.path.basename(folder)
        self.create_model_card(**kwargs)
        return partial(
            push_folder,
            folder,
            repo_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
        )


def with_hyper_parameters(facts: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """What `card_facts` gave, with further hyper-parameters; a run that has not trained says nothing of them."""
    if "hyper_parameters" not in facts:
        return facts
    return facts | {"hyper_parameters": {**facts["hyper_parameters"], **further}}


def _warn_of_failure(push: Future[CommitInfo]) -> None:
    if (error := push.exception()) is not None:
        _logger.warning(f"the model was not published while training goes on: {error}")

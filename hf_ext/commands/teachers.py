"""Teachers of a recommender from the command line: saved ones, and ones that are trained first."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments, set_seed

from hf_ext._arguments import Bounds, Count
from hf_ext._files import is_regular, read_json, write_atomically
from hf_ext.commands.places import check_place
from hf_ext.commands.recommenders import Architecture, RecommenderArguments
from hf_ext.commands.training import options_of
from hf_ext.data.interactions import NextItems, NextItemsCollator, SetEpoch, SplitInteractions
from hf_ext.trainers.arguments import MethodArguments, option
from hf_ext.trainers.processes import decided_by_main

#: folder of those that were trained, within output_dir
FOLDER = "causald_teachers"
_WHAT = "teacher.json"
_DEFAULT = ("deepfm", "gru", "sasrec")
_DIRECT_RANK = 8
#: what a teacher's Trainer does not do, whatever the student's does
_AT_TEACHERS: dict[str, Any] = {
    "push_to_hub": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "resume_from_checkpoint": None,
}


@dataclass
class TeacherArguments(MethodArguments):
    """Which teachers."""

    teachers: list[str] | None = option(
        None,
        "Teachers, separated by commas: architectures, which are trained first, and folders or Hub ids of saved "
        "recommenders of the same items; 'none' for none (with --causald_alpha 0). By default deepfm,gru,sasrec.",
    )
    teacher_hidden_size: Count = option(32, "Width of those that are trained first.")
    teacher_steps: Count | None = option(None, "Steps of each one's training; by default as long as the student's.")
    teacher_direct_rank: Annotated[int, Bounds(at_least=0)] | None = option(
        None,
        f"Rank of their direct path; by default {_DIRECT_RANK} with causald_front_door 'bank' (it takes one), else 0.",
    )
    teacher_mediator_length: Count | None = option(
        None, "Items of a history, the newest, that all but their direct path is made of; by default max_length."
    )
    teacher_data: Literal["all", "users", "time"] = option(
        "all",
        "What each of them sees: 'all'; 'users', the events of a part of the users, drawn by seed; 'time', those of a "
        "span of time, all spans with as many.",
    )

    @property
    def places(self) -> list[str]:
        """Architectures, folders and Hub ids."""
        if self.teachers is None:
            return list(_DEFAULT)
        words = [word.strip() for value in self.teachers for word in value.split(",")]
        return [] if words == ["none"] else [word for word in words if word]

    def check(self, alpha: float) -> None:
        """Before anything is loaded.

        Raises:
            ValueError: a teacher that is no architecture and can be no folder or Hub id, or teachers of nothing.
        """
        if alpha == 0 and self.teachers is not None and self.places:
            raise ValueError(
                f"teachers: found {', '.join(self.places)} with causald_alpha=0, allowed is 'none', or a larger "
                "causald_alpha: nobody would learn from them"
            )
        for place in self.places:
            if place not in get_args(Architecture):
                if "/" not in place and not Path(place).is_dir():
                    raise ValueError(
                        f"teachers: found {place!r}, allowed are {', '.join(get_args(Architecture))}, and folders or "
                        "Hub ids of saved recommenders"
                    )
                check_place("teachers", place)


class Teachers:
    """The teachers of a run: those that are saved already by where they are, the others as models to be trained.

    A teacher that is trained here is kept in a folder of its own with what it was made of, so that a run that was
    interrupted or is resumed finds it again.

    Args:
        chosen: which.
        recommender: what of the student's options holds for teachers, too.
        split: what they learn from.
        args: the student's.
        resumes: whether the student's training goes on.

    Raises:
        ValueError: the folder has a teacher of something else, or a part of the data has no rows.
    """

    def __init__(
        self,
        chosen: TeacherArguments,
        recommender: RecommenderArguments,
        split: SplitInteractions,
        args: Any,
        *,
        resumes: bool = False,
    ) -> None:
        self.places = [] if args.causald_alpha == 0 else chosen.places
        #: as `CausalDTrainer` takes them
        self.sources: list[Any] = list(self.places)
        self._args, self._steps = args, chosen.teacher_steps
        self._waiting: dict[int, _Waiting] = {}
        trained = [number for number, place in enumerate(self.places) if place in get_args(Architecture)]
        if not trained:
            return
        rank = chosen.teacher_direct_rank
        if rank is None:
            rank = _DIRECT_RANK if args.causald_front_door == "bank" else 0
        config = {
            "hidden_size": chosen.teacher_hidden_size,
            "direct_rank": rank,
            "mediator_length": chosen.teacher_mediator_length,
            "loss": args.causald_kind,
        }
        rows = recommender.rows(split, args)
        for part, number in zip(_parts(rows, chosen.teacher_data, len(trained), args.seed), trained, strict=True):
            folder = Path(args.output_dir) / FOLDER / str(number + 1)
            own = {**config, "architecture": self.places[number]}
            what = {**asdict(recommender), **own, "data": rows.digest, "seed": args.seed + number}
            what |= {"teacher_data": f"{chosen.teacher_data}, {trained.index(number) + 1} of {len(trained)}"}
            # a run that is resumed may be longer than it was to be at first, its teachers stay
            what |= {} if resumes else self._training()
            if decided_by_main(partial(_is_kept, folder, what)):
                self.sources[number] = str(folder)
                continue
            set_seed(what["seed"])
            model = recommender.make(split.interactions.items, **own)
            self.sources[number] = model
            self._waiting[number] = _Waiting(folder, model, part, what | self._training())

    def _training(self) -> dict[str, Any]:
        """What of the arguments tells one training from another."""
        names = ("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs", "per_device_train_batch_size")
        options = {name: getattr(self._args, name) for name in (*names, "gradient_accumulation_steps")}
        schedule = self._args.lr_scheduler_type
        return options | {
            "teacher_steps": self._steps or self._args.max_steps,
            "lr_scheduler_type": str(getattr(schedule, "value", schedule)),
        }

    def train(self, say: Callable[[str], None]) -> None:
        """Train those that are not there yet, one after the other, and save each; `say` is told which."""
        for number, (folder, model, rows, what) in self._waiting.items():
            say(f"teacher {number + 1} of {len(self.sources)}: {self.places[number]}")
            own: dict[str, Any] = {"output_dir": str(folder), "seed": what["seed"]}
            own |= {} if self._steps is None else {"max_steps": self._steps}
            trainer = Trainer(
                model,
                TrainingArguments(**{**options_of(TrainingArguments, self._args), **_AT_TEACHERS, **own}),
                data_collator=NextItemsCollator(),
                train_dataset=rows,
                callbacks=[SetEpoch()],
            )
            trainer.train()
            trainer.save_model()
            model.to("cpu")
            if trainer.is_world_process_zero():
                write_atomically(folder / _WHAT, json.dumps(what, indent=1))
            self.sources[number] = str(folder)
        self._waiting = {}


class _Waiting(NamedTuple):
    """A teacher to be trained: where it is kept, the model, what it learns from, and what it is made of."""

    folder: Path
    model: Any
    rows: Any
    what: dict[str, Any]


def _is_kept(folder: Path, what: dict[str, Any]) -> bool:
    """Whether a folder has this teacher, trained to the end."""
    if not is_regular(folder / _WHAT):
        return False
    found = read_json(folder / _WHAT, "output_dir")
    if different := [name for name, value in json.loads(json.dumps(what)).items() if found.get(name) != value]:
        raise ValueError(
            f"output_dir: found a teacher with other values of {', '.join(different)} in {str(folder)!r}, allowed are "
            f"those of an equal run: name another folder, or delete {FOLDER} and causald_effects in it"
        )
    return True


class _Part(Subset[Any]):
    """Some rows of a data set, which draws anew in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


def _parts(rows: NextItems, division: str, number: int, seed: int) -> Sequence[Any]:
    """What each of so many teachers learns from.

    Raises:
        ValueError: times are asked for and there are none, or there are not enough users or rows.
    """
    if division == "all":
        return [rows] * number
    if division == "users":
        users = np.random.default_rng(seed).permutation(np.unique(rows.users))
        chosen = [np.flatnonzero(np.isin(rows.users, part)) for part in np.array_split(users, number)]
    else:
        order = np.argsort(_times_of(rows), kind="stable")
        chosen = [np.sort(part) for part in np.array_split(order, number)]
    if not all(map(len, chosen)):
        raise ValueError(
            f"teacher_data: found {division!r}, whose {number} parts are not all of a row, allowed is 'all'"
        )
    return [_Part(rows, part.tolist()) for part in chosen]


def _times_of(rows: NextItems) -> NDArray[Any]:
    """When the target of every training row was taken, `[N]`: rows are a user's events but the first, in order."""
    log = rows.split.interactions
    if log.times is None:
        raise ValueError("teacher_data: found 'time' with time_column 'none', allowed are 'all' and 'users'")
    first = np.diff(rows.users, prepend=-1) != 0
    starts = np.flatnonzero(first)
    within = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return log.times[log.offsets[rows.users] + 1 + within]

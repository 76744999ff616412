"""A Flower ServerApp that trains a Trainer's model in a federation, and leaves it as Trainer leaves a model."""

import copy
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch.nn import Parameter

from hf_ext.hub_cards import METHODS
from hf_ext.trainers.federated.checkpoints import (
    Checkpoint,
    as_json,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from hf_ext.trainers.federated.clients import TrainerFactory, evaluated, private_noise
from hf_ext.trainers.federated.facts import measured_at_clients, told_of
from hf_ext.trainers.federated.flower import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Grid,
    MetricRecord,
    Result,
    ServerApp,
    Strategy,
)
from hf_ext.trainers.federated.frozen import frozen_facts
from hf_ext.trainers.federated.guard import GuardedMixin, guarded
from hf_ext.trainers.federated.ledger import (
    EVALUATE,
    SERVER,
    TRAIN,
    Ledger,
    numbers_of,
    restore_strategy_state,
    strategy_state,
    within,
)
from hf_ext.trainers.federated.records import from_record, to_record
from hf_ext.trainers.federated.travelling import load_tensors, travelling_tensors

logger = logging.getLogger(__name__)

#: where Flower's Result has the metrics of each kind
_HISTORIES = {
    TRAIN: "train_metrics_clientapp",
    EVALUATE: "evaluate_metrics_clientapp",
    SERVER: "evaluate_metrics_serverapp",
}


#: strategies that know of a run, which another one would take for its own
_HAVE_RUN: WeakSet[Strategy] = WeakSet()


class FederatedServerApp(ServerApp):
    """A ServerApp that knows what came of its last run.

    `result` is Flower's, `trainer` has the global model, and `ledger` says who took part when and what was left out.
    """

    result: Result | None = None
    trainer: Any = None
    ledger: Ledger | None = None


def server_app(
    strategy_factory: Callable[[Context], Strategy],
    trainer_factory: TrainerFactory,
    *,
    num_rounds: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    timeout: float = 3600.0,
    train_config: Mapping[str, Any] | None = None,
    evaluate_config: Mapping[str, Any] | None = None,
    resume_from_checkpoint: bool | str | os.PathLike[str] = False,
    push_to_hub: bool = False,
) -> FederatedServerApp:
    """A ServerApp for the clients of `client_app`.

    The Trainer that the function makes for the server, whose context has no `partition-id`, brings the first global
    model; if it has an `eval_dataset`, the global model is evaluated on it before the first round and after each.
    At the end its model is the global one. With an `output_dir`, a checkpoint is written there after each round and
    the model at the end, as `Trainer.save_model` does, with a card.

    Args:
        strategy_factory: from the server's `Context` to a Flower strategy, of this package, of Flower or one's own; a
            guard is put around it (`GuardedMixin`).
        trainer_factory: the same function as the clients'.
        num_rounds: by default `num-server-rounds` of the run's config, or 3.
        output_dir: by default `output-dir` of the run's config; without either nothing is written.
        timeout: seconds that a round's clients have to reply.
        train_config, evaluate_config: what the clients are told, by name.
        resume_from_checkpoint: True for the newest checkpoint in `output_dir`, if there is one, or the folder of one;
            `resume-from-checkpoint` of the run's config goes before it.
        push_to_hub: push the global model at the end, as the server's Trainer does (`hub_model_id`, ...).

    Raises:
        ValueError: when the app runs: checkpoints in `output_dir` without `resume_from_checkpoint`, one of another
            model or strategy, or arguments that are none.
    """
    app = FederatedServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        said = context.run_config
        with private_noise():
            trainer = trainer_factory(context)
        run = _Run(
            trainer=trainer,
            strategy=strategy_factory(context),
            rounds=num_rounds if num_rounds is not None else said.get("num-server-rounds", 3),
            folder=output_dir if output_dir is not None else said.get("output-dir") or None,
            resume=said.get("resume-from-checkpoint", resume_from_checkpoint),
        )
        app.trainer = run.trainer
        app.ledger = run.guard.ledger
        app.result = run.start(grid, timeout, train_config, evaluate_config)
        run.leave(push_to_hub)

    return app


class _Run:
    def __init__(self, *, trainer: Any, strategy: Any, rounds: Any, folder: Any, resume: Any) -> None:
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"num_rounds: found {rounds!r}, allowed are integers >= 1")
        if any(one in _HAVE_RUN for one in within(strategy)):
            raise ValueError(
                f"strategy_factory: found a {type(strategy).__name__} that has run already, allowed is a new one"
            )
        self.trainer, self.rounds = trainer, rounds
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            trainer.args = copy.copy(trainer.args)
            trainer.args.output_dir = str(self.folder)
        self.card = getattr(trainer, "card", None)
        if self.card is not None:
            self.card.describe_run(trainer.args, trainer.model)
        self.own = travelling_tensors(trainer.model)
        self.frozen = frozen_facts(trainer.model)
        self.guard = guarded(strategy, seed=trainer.args.seed)
        buffers = frozenset(name for name, one in self.own.items() if not isinstance(one, Parameter))
        for one in within(self.guard):
            if isinstance(one, GuardedMixin):
                one.buffers = buffers
        self.arrays = to_record(self.own)
        self.guard.ledger.federation = secrets.token_hex(8)
        self.first_numbers = numbers_of(self.guard)
        place = self._checkpoint(resume)
        if place is not None:
            self._restore(load_checkpoint(place))

    def _checkpoint(self, resume: Any) -> Path | None:
        newest = None if self.folder is None else newest_checkpoint(self.folder)
        if resume is True or resume is False:
            if newest is not None and not resume:
                raise ValueError(
                    f"output_dir: found {newest.name} of a federation in {str(self.folder)!r}, allowed is a folder "
                    "without, or resume_from_checkpoint=True"
                )
            return newest
        place = Path(resume)
        is_later = (
            newest is not None and place.parent.resolve() == newest.parent.resolve() and place.name != newest.name
        )
        if newest is not None and is_later:
            raise ValueError(
                f"resume_from_checkpoint: found {place.name}, and {newest.name} of another course in "
                f"{str(self.folder)!r}, allowed is the newest in output_dir, or one of another folder"
            )
        return place

    def _restore(self, checkpoint: Checkpoint) -> None:
        values = checkpoint.values
        from_record(checkpoint.arrays, self.own, "resume_from_checkpoint")  # refuses one of another model
        found, allowed = values.get("strategy"), _name_of(self.guard)
        if found != allowed:
            raise ValueError(f"resume_from_checkpoint: found a federation of {found}, allowed is one of {allowed}")
        self.arrays = checkpoint.arrays
        self.guard.ledger = Ledger.from_dict(values["ledger"])
        self.guard.ledger.rounds_done = checkpoint.number
        restore_strategy_state(self.guard, checkpoint.tensors, values["state"])
        logger.info(f"goes on after round {checkpoint.number}")

    def start(self, grid: Grid, timeout: float, train_config: Any, evaluate_config: Any) -> Result:
        """Run the rounds that are left, by Flower's own loop."""
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ValueError(f"timeout: found {timeout!r}, allowed are seconds > 0")
        _HAVE_RUN.update(within(self.guard))
        result = self.guard.start(
            grid,
            self.arrays,
            num_rounds=max(self.rounds - self.guard.ledger.rounds_done, 0),
            timeout=timeout,
            train_config=ConfigRecord({**self.frozen, **(train_config or {})}),
            evaluate_config=ConfigRecord({**self.frozen, **(evaluate_config or {})}),
            evaluate_fn=self._after_round,
        )
        load_tensors(self.trainer.model, from_record(self.arrays, self.own, "the global model"))
        result.arrays = self.arrays
        for kind, name in _HISTORIES.items():  # Flower's has this run's rounds alone, counted from 1
            rounds = self.guard.ledger.history[kind].items()
            setattr(result, name, {number: MetricRecord(metrics) for number, metrics in rounds})
        return result

    def _after_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        ledger = self.guard.ledger
        number = server_round + ledger.rounds_done
        if number > 0 and server_round == 0:
            return None  # the last round of the run before
        self.arrays = arrays
        metrics = None
        if self.trainer.eval_dataset is not None:
            load_tensors(self.trainer.model, from_record(arrays, self.own, "the global model"))
            metrics = MetricRecord({**evaluated(self.trainer)})
            ledger.measure(SERVER, number, metrics)
        if self.folder is not None and server_round:
            self._save(self.folder, number)
        return metrics

    def _save(self, folder: Path, number: int) -> None:
        tensors, state = strategy_state(self.guard, self.first_numbers)
        values = {"strategy": _name_of(self.guard), "ledger": as_json(self.guard.ledger.to_dict()), "state": state}
        save_checkpoint(folder, Checkpoint(number, self.arrays, tensors, values))

    def leave(self, push_to_hub: bool) -> None:
        """Write the model as Trainer does, with its card, and push them."""
        if self.card is not None:
            title = METHODS[self.card.method].title
            ledger = self.guard.ledger
            self.card.add_federation(told_of(ledger, _name_of(self.guard)), measured_at_clients(ledger, title))
        if self.folder is not None:
            self.trainer.save_model(str(self.folder))
        if push_to_hub:
            self.trainer.push_to_hub()
        elif self.folder is not None and self.card is not None:
            self.trainer.create_model_card()


def _name_of(guard: GuardedMixin) -> str:
    """A strategy's class, and those of what it is wrapped around."""
    return " around ".join(type(one).__name__ for one in within(guard))

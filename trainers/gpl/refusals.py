"""What a run cannot be made of, said before its first step; and what it can, but had better not."""

import warnings
from typing import Any

from hf_ext.functional import edge_homophily
from hf_ext.models.graph import GraphPUModel
from hf_ext.trainers.gpl.epochs import RANKING
from hf_ext.trainers.gpl.graph import PUGraph

#: fewer held-out positives than these tell little
FEW = 20


def check_model(model: Any, args: Any) -> None:
    """Refuse models that cannot be trained so.

    Raises:
        ValueError: naming what was found.
    """
    if not isinstance(model, GraphPUModel):
        raise ValueError(f"model: found {type(model).__name__}, allowed is GraphPUModel, bare")
    config = model.config
    scores = args.gpl_objective == "gpl" and args.gpl_edges == "scorer"
    if config.edge_scorer != scores:
        raise ValueError(
            f"edge_scorer: found {config.edge_scorer} with gpl_objective={args.gpl_objective!r} and "
            f"gpl_edges={args.gpl_edges!r}, allowed is {scores} (only 'gpl' with 'scorer' trains one)"
        )
    if scores and config.edge_kind != args.gpl_edge_kind:
        raise ValueError(
            f"gpl_edge_kind: found {args.gpl_edge_kind!r} and a model of edge_kind={config.edge_kind!r}, allowed is "
            "the model's"
        )
    neighbors = args.gpl_neighbors
    if neighbors is not None and config.conv != "mlp" and len(neighbors) != config.num_layers:
        raise ValueError(
            f"gpl_neighbors: found {len(neighbors)} fan-outs and a model of {config.num_layers} layers, allowed is "
            "one for each"
        )


def check_features(graph: PUGraph, model: Any) -> None:
    """Refuse graphs with another number of features than the model's.

    Raises:
        ValueError: naming both.
    """
    found, allowed = graph.x.shape[1], model.config.num_features
    if found != allowed:
        raise ValueError(f"x: found {found} features, allowed are the model's {allowed} (num_features)")


def check_trainer(trainer: Any) -> None:
    """Refuse settings of a Trainer that take the loss or the graph apart.

    Raises:
        ValueError: naming what was found.
    """
    args = trainer.args
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func: found one, allowed is none: GPL has losses of its own")
    if args.label_smoothing_factor:
        raise ValueError(f"label_smoothing_factor: found {args.label_smoothing_factor}, allowed is 0")
    if args.n_gpu > 1:
        raise ValueError(
            f"n_gpu: found {args.n_gpu} GPUs in one process, allowed is one per process (accelerate launch)"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        sharded = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        raise ValueError(f"model: found {sharded}, allowed are weights that are not sharded")


def needs_held_out(args: Any) -> str | None:
    """The option that needs held-out positives, if one does."""
    if isinstance(args.gpl_prior, str) and args.gpl_objective != "naive":
        return f"gpl_prior={args.gpl_prior!r}"
    guided = args.gpl_objective in RANKING and args.gpl_guide == "auto"
    return "gpl_guide='auto'" if guided else None


def check_held_out(graph: PUGraph, args: Any) -> None:
    """Refuse graphs without held-out positives where they are needed; warn of few.

    Raises:
        ValueError: naming what needs them.
    """
    number, reason = int(graph.held_out.sum()), needs_held_out(args)
    if reason and not number:
        raise ValueError(
            f"gpl_held_out: found no held-out positive with {reason}, allowed are some: a share above 0, or a "
            "held_out_mask that has them"
        )
    if 0 < number < FEW:
        warnings.warn(
            f"gpl_held_out: found {number} held-out positives, what is estimated from fewer than {FEW} is uncertain",
            stacklevel=2,
        )


def warn_of_heterophily(graph: PUGraph) -> None:
    """Say that more edges than by chance join different classes, where the classes are known."""
    if graph.truth is None:
        return
    homophily = float(edge_homophily(graph.edge_index, graph.truth, edge_weight=graph.edge_weight, kind="adjusted"))
    if homophily < 0:
        warnings.warn(
            f"edge_index: found an adjusted homophily of {homophily:.2f}: edges join the two classes more often than "
            "chance does, and features alone may do better (graph_helps says so after the warm-up)",
            stacklevel=2,
        )


def check_epochs(args: Any, epochs: int) -> None:
    """Refuse runs that end with the warm-up.

    Raises:
        ValueError: naming both numbers.
    """
    if args.gpl_objective != "naive" and args.gpl_warmup_epochs >= epochs:
        raise ValueError(
            f"gpl_warmup_epochs: found {args.gpl_warmup_epochs} with {epochs} epochs, allowed are fewer than those "
            "(num_train_epochs, max_steps)"
        )

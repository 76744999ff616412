"""`hf-ext train gpl` and `hf-ext demo gpl`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_ext._files import write_atomically
from hf_ext._models import unwrapped
from hf_ext.commands.demo import DemoRun, Scored, run_demo
from hf_ext.commands.graphs import (
    RANKED,
    GraphArguments,
    GraphModelArguments,
    examples_of,
    predicted,
    prior_in_words,
    ranking_of,
    remark_on,
)
from hf_ext.commands.loading import Loaded
from hf_ext.commands.parsing import parse
from hf_ext.commands.training import check_counts, leave, new_trainer, resumed_from, seed_all, summary
from hf_ext.data.graphs import PUSplit, digits_graph
from hf_ext.models import GraphPUConfig, GraphPUModel
from hf_ext.trainers import GPLConfig, GPLTrainer
from hf_ext.trainers.gpl.results import save_edge_weights

TITLE = "GPL"
#: of TrainingArguments, since an epoch is one step and the networks are small
DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 120.0,
    "logging_steps": 10,
}


def train(argv: Sequence[str]) -> None:
    """Train on a graph of which some positive nodes are known, and leave a ranking of all others.

    Raises:
        ValueError: options or data that cannot be used, before anything is trained.
    """
    graph, network, args = parse(
        (GraphArguments, GraphModelArguments, GPLConfig),
        argv,
        prog="hf-ext train gpl",
        description="Find the positive nodes of a graph of which only some positives are known (GPL, Wu et al. 2024), "
        f"say how many there are, and whether the edges help. Leaves a model and a ranking of all others, {RANKED}.",
        defaults=DEFAULTS,
    )
    check_counts(args)
    data = graph.load()
    seed_all(args)
    model = network.make(data, edge_scorer=args.gpl_edges == "scorer", edge_kind=args.gpl_edge_kind)
    loaded = Loaded(model, {"train": data}, None, None, keeps_columns=False, metrics=None)  # type: ignore[arg-type]
    trainer = new_trainer(GPLTrainer, model, args, loaded)
    trainer.data_remark = remark_on(trainer.eval_dataset)  # the graph, with what is held out
    trainer.train(resume_from_checkpoint=resumed_from(args))
    leave(trainer, graph.dataset or Path(str(graph.nodes)).name, saved=_rank, told=lambda found: _told(trainer, found))


def _rank(trainer: Any) -> None:
    """Write the ranking beside the saved model."""
    if trainer.is_world_process_zero():
        folder = str(trainer.args.output_dir)
        found = predicted(unwrapped(trainer.model), trainer.eval_dataset, folder)
        write_atomically(Path(folder) / RANKED, ranking_of(found, trainer.eval_dataset))


def _told(trainer: Any, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """What is printed at the end."""
    model, folder, data = unwrapped(trainer.model), str(trainer.args.output_dir), trainer.eval_dataset
    return "\n".join(
        [
            trainer.data_remark,
            summary(metrics, folder, ""),
            prior_in_words(model, data, trainer.args.gpl_prior),
            trainer.graph_helps["verdict"],
            examples_of(predicted(model, data, folder), data),
        ]
    )


# ------------------------------------------------------------------------------------------------ demo
CROSS_EDGES, LABEL_SHARE = 0.6, 0.5
NAIVE, NNPU, RANK, FEATURES, SHOWN = "unlabelled as negative", "nnPU", "rank, all edges alike", "features alone", TITLE
#: by system, its network's layers, and what is said to the Trainer
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    NAIVE: ("gcn", {"gpl_objective": "naive"}),
    NNPU: ("gcn", {"gpl_objective": "nnpu"}),
    RANK: ("gcn", {"gpl_objective": "rank", "gpl_guide": "self"}),
    FEATURES: ("mlp", {"gpl_objective": "rank", "gpl_guide": "self"}),
    SHOWN: ("gcn", {}),
}
#: values of the table, and their metrics
COLUMNS = {"F1 at the prior": "f1_at_prior", "AUC": "auc", "prior's error": "prior_error"}


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Find a digit in a graph of digits, of which half are known and whose edges mostly join different ones.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "gpl",
        out,
        seeds=seeds,
        steps=steps,
        text="",
        found="",
        systems=_systems,
        trainings=len(SYSTEMS),
        shown=SHOWN,
        metrics=tuple(COLUMNS),
        title="the unlabelled digits, mean over seeds",
        card={
            "dataset": "digits-graph",
            "dataset_description": "",
            "limitations": "A demonstration on a graph that was made of small images.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    graph = PUSplit(label_share=LABEL_SHARE, seed=run.seed)(digits_graph(cross_edges=CROSS_EDGES, seed=run.seed))
    for name, (conv, options) in SYSTEMS.items():
        torch.manual_seed(run.seed)
        model = GraphPUModel(GraphPUConfig(conv=conv, num_features=graph.x.shape[1], hidden_size=32))
        warmup = {"gpl_warmup_epochs": max(1, run.steps // 3), "gpl_seed": run.seed}
        shared = {"weight_decay": DEFAULTS["weight_decay"], "lr_scheduler_type": "constant", **warmup}
        trainer = GPLTrainer(
            model, run.arguments(GPLConfig, DEFAULTS["learning_rate"], **shared, **options), train_dataset=graph
        )
        run.train(trainer, name)
        metrics = trainer.evaluate()
        if name == SHOWN and run.seed == 0:
            trainer.model.config.save_pretrained(run.folder)
            save_edge_weights(trainer.epochs, run.folder)
        yield name, {column: metrics[f"eval_{metric}"] for column, metric in COLUMNS.items()}, trainer

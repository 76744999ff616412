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
from hf_ext.metrics import PUMetrics
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
    trainer.data_remark = remark_on(data, int(trainer.training_graph.held_out.sum()))
    trainer.train(resume_from_checkpoint=resumed_from(args))
    leave(
        trainer,
        graph.dataset or Path(str(graph.nodes)).name,
        saved=lambda trained: _rank(trained, data),
        told=lambda metrics: _told(trainer, data, metrics),
    )


def _rank(trainer: Any, data: Any) -> None:
    """Write the ranking beside the saved model."""
    if trainer.is_world_process_zero():
        folder = str(trainer.args.output_dir)
        found = predicted(unwrapped(trainer.model), data, folder)
        write_atomically(Path(folder) / RANKED, ranking_of(found, data))


def _told(trainer: Any, data: Any, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """What is printed at the end."""
    model, folder = unwrapped(trainer.model), str(trainer.args.output_dir)
    return "\n".join(
        [
            prior_in_words(model, data, trainer.args.gpl_prior),
            trainer.graph_helps["verdict"],
            examples_of(predicted(model, data, folder), data),
            summary(metrics, folder, trainer.data_remark),
        ]
    )


# ------------------------------------------------------------------------------------------------ demo
DATASET, POSITIVE, LABEL_SHARE = "digits-graph", (0, 1, 2, 3, 4), 0.5
#: graphs, by the share of their edges that join different digits
GRAPHS = {"unlike": 0.8, "alike": 0.3}
NAIVE, NNPU, RANK, FEATURES, SHOWN = (
    "unlabelled as negative",
    "nnPU",
    "ranked by the graph",
    "ranked by features",
    TITLE,
)
#: by system, its network's layers, and what is said to the Trainer
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    NAIVE: ("gcn", {"gpl_objective": "naive"}),
    NNPU: ("gcn", {"gpl_objective": "nnpu"}),
    RANK: ("gcn", {"gpl_objective": "rank", "gpl_guide": "self"}),
    FEATURES: ("mlp", {"gpl_objective": "rank", "gpl_guide": "self"}),
    SHOWN: ("gcn", {}),
}
#: values of the table of each graph, and their metrics
COLUMNS = {"F1": "f1_at_prior", "AUC": "auc", "prior error": "prior_error"}


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Find the digits below five in two graphs of digits: one whose edges mostly join unlike ones, and one of alike.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "gpl",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]{TITLE}[/] on graphs of handwritten digits: half of the digits 0 to 4 are known to be positive, "
        "of all others nothing is. Which of them are positive is to be found, and how many. In one graph four of five "
        "edges join different digits (unlike), in the other three of ten (alike). Compared: a network that takes what "
        "is unlabelled for negative, nnPU, and one that takes the highest ranked for positive, by the graph or by "
        f"features alone; {seeds} seeds. F1 is at the estimated share of positives.",
        found="Where neighbours are unlike, ranking by the graph confirms its own mistakes; GPL, guided by features "
        "and with learned edges, takes back most of that, and gets no further than features alone. Where they are "
        "alike, what is unlabelled may as well be taken for negative. GPL need not be told which graph it is, nor how "
        "many are positive. `hf-ext reproduce gpl` compares on more graphs.",
        systems=_systems,
        trainings=len(SYSTEMS) * len(GRAPHS),
        shown=SHOWN,
        metrics=tuple(f"{column} {graph}" for graph in GRAPHS for column in COLUMNS),
        title="the unlabelled digits, mean over seeds",
        card={
            "dataset": DATASET,
            "dataset_description": (
                "The 1797 handwritten digits of scikit-learn (8 x 8 pixels), each joined to its five nearest, with "
                "some edges moved so that 80 % (unlike; the graph of this model) or 30 % (alike) join different "
                f"digits. Positive are the digits 0 to 4, of which half are known, drawn anew with every seed, and a "
                f"fifth of these is held out of training. All numbers are of the unlabelled digits after {steps} "
                "epochs: F1 of the estimated share of them that ranks highest, AUC, and how far that share is from "
                "the truth."
            ),
            "limitations": "A demonstration on graphs that were made of small images.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    graphs = {name: _graph(run, share) for name, share in GRAPHS.items()}
    for system in SYSTEMS:
        trainers = {name: _trained(run, system, name, graph) for name, graph in graphs.items()}
        values = {
            f"{column} {name}": found
            for name, trainer in trainers.items()
            for column, found in _values(trainer, graphs[name]).items()
        }
        first = next(iter(trainers.values()))
        if system == SHOWN and run.seed == 0 and first.epochs is not None:
            save_edge_weights(first.epochs, run.folder)
        yield system, values, first


def _graph(run: DemoRun, cross_edges: float) -> Any:
    split = PUSplit(POSITIVE, label_share=LABEL_SHARE, seed=run.seed)
    return split(digits_graph(cross_edges=cross_edges, seed=run.seed))


def _trained(run: DemoRun, system: str, graph_name: str, graph: Any) -> GPLTrainer:
    conv, options = SYSTEMS[system]
    torch.manual_seed(run.seed)
    model = GraphPUModel(GraphPUConfig(conv=conv, num_features=graph.x.shape[1], hidden_size=32))
    rate, common = DEFAULTS["learning_rate"], {name: DEFAULTS[name] for name in ("weight_decay", "lr_scheduler_type")}
    args = run.arguments(
        GPLConfig, rate, **common, **options, gpl_warmup_epochs=max(1, run.steps // 3), gpl_seed=run.seed
    )
    trainer = GPLTrainer(model, args, train_dataset=graph)
    run.train(trainer, f"{system}, {graph_name}")
    return trainer


def _values(trainer: Any, graph: Any) -> dict[str, float]:
    """Of the table's columns, with the prior that the model itself has estimated."""
    config = trainer.model.config
    found = PUMetrics(config.class_prior, config.score_offset)(trainer.predict(graph))
    return {column: found[metric] for column, metric in COLUMNS.items()}

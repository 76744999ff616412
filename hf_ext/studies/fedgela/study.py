"""FedGELA against learnt and other fixed heads, with clients that lack classes."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hf_ext.functional import etf_class_weights
from hf_ext.studies.fedgela.heads import LEARNT, RANDOM, SIMPLEX, angles, class_means
from hf_ext.studies.fedgela.systems import client_of, model_of, strategy_of
from hf_ext.studies.fedlesam.data import (
    ALPHA,
    CLASSES_EACH,
    CLIENTS,
    LOCAL_TEST,
    MILDER,
    NEEDS,
    Federation,
    Part,
    check,
    federation,
    open_problem,
    prepare,
)
from hf_ext.studies.fedlesam.federating import (
    ACTIVE,
    BATCH,
    CLIPPING,
    DECAY,
    LAST,
    WEIGHT_DECAY,
    Setting,
    logits_of,
    personal_accuracy,
    train,
)
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Run, Source, Study, System

#: how all systems train
SETTINGS = {"digits": Setting(30, 5, 0.03), "images": Setting(20, 2, 0.1)}
WORST = 3  # classes that are worst off
FEDAVG, FEDPROX, FEDRS, FEDBABU = "FedAvg", "FedProx", "FedRS", "FedBABU"
ETF, GELA, RANDOM_GELA = "simplex alone", "FedGELA", "random head, class weights"
PERSONAL, KNOWN, WORST_CLASSES, ANGLE = "personal view", "own classes known", "worst classes", "smallest angle"


def run(run: Run) -> Outcome:
    """Train one federation; the score is the global model's accuracy on the common test rows."""
    problem = open_problem(run.folder)
    clients = federation(problem, run.case.options["kind"], run.seed)
    settings = {**run.system.options, **run.hyper_parameters}
    setting = SETTINGS[run.case.data]
    if run.quick:
        setting = replace(setting, rounds=2, epochs=1)
    trained = train(
        clients,
        partial(model_of, problem, settings, run.seed),
        client_of(settings, problem.classes),
        strategy_of(settings),
        setting,
        run.seed,
    )
    if trained is None:
        return Outcome(math.nan, math.nan, dict.fromkeys((PERSONAL, KNOWN, WORST_CLASSES, ANGLE)))
    counts = torch.from_numpy(clients.counts)
    details = {
        PERSONAL: personal_accuracy(clients, _personal_view(settings, counts), trained.model),
        KNOWN: personal_accuracy(clients, _of_own_classes(counts), trained.model),
        WORST_CLASSES: float(np.sort(recalls(trained.model, clients.test, problem.classes))[:WORST].mean()),
        ANGLE: float(angles_on_test(trained.model, clients)[0]),
    }
    return Outcome(trained.final["validation"], trained.final["test"], details)


def _personal_view(settings: dict[str, object], counts: Tensor) -> Callable[[int, Tensor], Tensor]:
    """What a client makes of global logits: with class weights FedGELA's personal ones, else the same."""
    if not settings.get("weights"):
        return lambda client, logits: logits
    weights = [etf_class_weights(one).float() for one in counts]
    return lambda client, logits: logits * weights[client]


def _of_own_classes(counts: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Global logits of the classes that a client has."""
    return lambda client, logits: logits.masked_fill(counts[client] == 0, -math.inf)


def recalls(model: nn.Module, part: Part, classes: int) -> np.ndarray:
    """Share of every class's rows that are classified correctly, `[C]`."""
    right = (logits_of(model, part).argmax(-1) == part.labels).numpy()
    return np.array([right[part.labels.numpy() == label].mean() for label in range(classes)])


def angles_on_test(model: nn.Module, clients: Federation) -> Tensor:
    """Angles between the classes' mean features on the common test rows, the smallest first."""
    test = clients.test
    return angles(class_means(model, test.pixel_values, test.labels, clients.classes))


# ------------------------------------------------------------------------------------------------ studies
_CASES = (
    Case("digits, classes", "digits", {"kind": "classes"}),
    Case("digits, Dirichlet", "digits", {"kind": "dirichlet"}),
    Case("digits, milder Dirichlet", "digits", {"kind": "milder"}),
    Case("images, classes", "images", {"kind": "classes"}),
)
_TEMPERATURES = {"temperature": (0.05, 0.1, 0.2, 0.4)}


def _lengths() -> str:
    return "; ".join(
        f"`{name}` {one.rounds} rounds of {one.epochs} epochs, rate {one.learning_rate:g}"
        for name, one in SETTINGS.items()
    )


PROTOCOL = f"""
- **Federations.** {CLIENTS} clients, of which {ACTIVE:.0%} train in a round. *classes*: {CLASSES_EACH} classes at
  each client. *Dirichlet*: shares of every class drawn with alpha {ALPHA:g}, *milder* {MILDER:g}. A client
  keeps {LOCAL_TEST:.0%} of its rows for tests of its own.
- **Metric.** The global view's accuracy on common test rows, mean over the last {LAST} rounds.
- **Systems.** With a learnt head: Flower's FedAvg and FedProx (mu 0.01), FedRS (alpha 0.5). With one that is fixed:
  FedBABU, the head as it was drawn; *{ETF}*, without class weights; FedGELA; and the control *{RANDOM_GELA}*: FedGELA
  with directions drawn at random in place of the simplex.
- **Training.** {_lengths()}. Batches of {BATCH}, plain SGD, weight decay {WEIGHT_DECAY:g}, gradients clipped at
  {CLIPPING:g}, the rate times {DECAY:g} after each round.
- **Network.** A small ResNet with GroupNorm, untrained at first.
- **Hyper-parameters.** The learning rate is the one that FedAvg was best with (study `fedlesam`), for all. The
  temperature of heads that have one is chosen by accuracy on common validation rows, a sixth of the training rows,
  with another seed (1000).
- **Details**, of the model after the last round. *{PERSONAL}*: accuracy on the rows that clients keep, mean over
  clients; with class weights that of FedGELA's personal view, which knows what a client has, else of the global model.
  *{KNOWN}*: the same of the global view where a client looks at its own classes alone, which any system can.
  *{WORST_CLASSES}*: mean recall of the {WORST} classes that are worst off on the common test rows. *{ANGLE}*: between
  the classes' mean features there, in degrees; a simplex of ten has 96.
- **Runs** as in the study `fedlesam`: Flower's strategies, messages and client app, in one process.
- A seed draws who has which rows, validation rows, initial weights and heads, the clients of each round and their
  batches; it is shared by all systems.
- **Limits.** A small network, little data, tens of rounds.
""".strip()

COMPARISON = Study(
    name="fedgela",
    title="FedGELA: clients that lack classes",
    question=(
        "Where clients lack classes, is a fixed simplex with class weights a better head than a learnt one, than the "
        "simplex alone, and than random directions, for the common model and for the clients?"
    ),
    metric="accuracy of the global view",
    data={
        "digits": Source(
            "handwritten digits (scikit-learn)",
            embedded="digits",
            needs=NEEDS["digits"],
            origin="comes with scikit-learn",
        ),
        "images": Source(
            "photographs of ten classes (CIFAR-10)",
            needs=NEEDS["images"],
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        ),
    },
    cases=_CASES,
    systems=(
        System(FEDAVG, {"client": "plain", "head": LEARNT}),
        System(FEDPROX, {"client": "proximal", "head": LEARNT, "mu": 0.01}),
        System(FEDRS, {"client": "restricted", "head": LEARNT, "alpha": 0.5}),
        System(FEDBABU, {"client": "plain", "head": LEARNT, "frozen": True}),
        System(RANDOM_GELA, {"client": "gela", "head": RANDOM, "weights": True}, _TEMPERATURES),
        System(ETF, {"client": "gela", "head": SIMPLEX, "weights": False}, _TEMPERATURES),
        System(GELA, {"client": "gela", "head": SIMPLEX, "weights": True}, _TEMPERATURES, is_method=True),
    ),
    comparisons=tuple(Comparison(GELA, baseline) for baseline in (FEDAVG, FEDPROX, FEDRS, FEDBABU, ETF, RANDOM_GELA)),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    details=(Detail(PERSONAL), Detail(KNOWN), Detail(WORST_CLASSES), Detail(ANGLE)),
)

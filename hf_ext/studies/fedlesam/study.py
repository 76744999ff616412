"""FedLESAM against averaging, FedSAM and the methods that it is added to, with clients of different data."""

import math
from functools import partial

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy

from hf_ext.studies.fedlesam.data import (
    ALPHA,
    CLASSES_EACH,
    CLIENTS,
    LOCAL_TEST,
    NEEDS,
    Federation,
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
    WINDOW,
    Setting,
    personal_accuracy,
    train,
)
from hf_ext.studies.fedlesam.models import small_model
from hf_ext.studies.fedlesam.sharpness import sharpness
from hf_ext.studies.fedlesam.systems import client_of, strategy_of
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Run, Source, Study, System

#: how all systems train; the learning rate is the one that FedAvg is best with
SETTINGS = {"digits": Setting(30, 5, 0.03), "origins": Setting(20, 3, 0.1), "images": Setting(20, 2, 0.1)}
ALONG_BY, AROUND_BY, MOST_ROWS = 0.1, 2.0, 1000  # of the sharpness: lengths of steps, and rows of the loss
FEDAVG, FEDPROX, FEDSAM, LESAM, RANDOM = "FedAvg", "FedProx", "FedSAM", "FedLESAM", "random direction"
LESAM_S, LESAM_D, SCAFFOLD, FEDDYN = "FedLESAM-S", "FedLESAM-D", "SCAFFOLD", "FedDyn"
PERSONAL, SPEED = "clients' own rows", "rounds to the target"
ALONG, AROUND = "rise along the gradient", "rise at random"


def run(run: Run) -> Outcome:
    """Train one federation; the score is the global model's accuracy on the common test rows."""
    problem = open_problem(run.folder)
    clients = federation(problem, run.case.options["kind"], run.seed)
    settings = {**run.system.options, **run.hyper_parameters}
    setting = SETTINGS[run.case.data]
    if run.quick:
        setting = Setting(2, 1, setting.learning_rate)
    rate = setting.learning_rate * settings.get("rate", 1.0)
    trained = train(
        clients,
        partial(small_model, problem, run.seed),
        client_of(settings),
        strategy_of(settings),
        Setting(setting.rounds, setting.epochs, rate),
        run.seed,
    )
    if trained is None:
        return Outcome(math.nan, math.nan, dict.fromkeys((PERSONAL, SPEED, ALONG, AROUND)))
    rises = _rises(clients, trained.model, run.seed)
    details = {
        PERSONAL: personal_accuracy(clients, lambda client, logits: logits, trained.model),
        SPEED: trained.rounds_to(run.case.options["target"]),
        ALONG: rises["along"],
        AROUND: rises["around"],
    }
    return Outcome(trained.final["validation"], trained.final["test"], details)


def _rises(clients: Federation, model: nn.Module, seed: int) -> dict[str, float]:
    """The sharpness of the loss of what all clients train on, or of so many of these rows."""
    indices = np.concatenate(clients.training.indices)
    rows = clients.held.select(np.random.default_rng(seed).permutation(indices)[:MOST_ROWS])
    device = next(model.parameters()).device
    pixels, labels = rows.pixel_values.to(device), rows.labels.to(device)
    return sharpness(
        lambda: cross_entropy(model(pixel_values=pixels).logits, labels),
        [param for param in model.parameters() if param.requires_grad],
        along=ALONG_BY,
        around=AROUND_BY,
        seed=seed,
    )


# ------------------------------------------------------------------------------------------------ studies
DATA = {
    "digits": Source(
        "handwritten digits (scikit-learn)", embedded="digits", needs=NEEDS["digits"], origin="comes with scikit-learn"
    ),
    "origins": Source(
        "handwritten digits of five origins (MNIST, USPS, Semeion, optdigits, MNIST on photographs)",
        needs=NEEDS["origins"],
        origin="the collections' own sources; examples/README.md says how to make the table (DISAM's `digits`)",
    ),
    "images": Source(
        "photographs of ten classes (CIFAR-10)",
        needs=NEEDS["images"],
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
}

_CASES = (
    Case("digits, Dirichlet", "digits", {"kind": "dirichlet", "target": 0.75}),
    Case("digits, classes", "digits", {"kind": "classes", "target": 0.75}),
)
_LARGER_CASES = (
    Case("digits, origins", "origins", {"kind": "natural", "target": 0.65}),
    Case("images, Dirichlet", "images", {"kind": "dirichlet", "target": 0.2}),
)
_DETAILS = (
    Detail(PERSONAL),
    Detail(SPEED, greater_is_better=False),
    Detail(ALONG, greater_is_better=False),
    Detail(AROUND, greater_is_better=False),
)
_RHOS, _FEW_RHOS, _RHO = (0.01, 0.05, 0.1, 0.5), (0.05, 0.5), 0.05


def _lengths(cases: tuple[Case, ...]) -> str:
    settings = {case.data: SETTINGS[case.data] for case in cases}
    return "; ".join(
        f"`{name}` {one.rounds} rounds of {one.epochs} epochs, rate {one.learning_rate:g}"
        for name, one in settings.items()
    )


def _targets(cases: tuple[Case, ...]) -> str:
    return ", ".join(f"{case.options['target']:g} ({case.name})" for case in cases)


PROTOCOL = f"""
- **Federations.** {CLIENTS} clients, of which {ACTIVE:.0%} train in a round. *Dirichlet*: shares of every class drawn
  with alpha {ALPHA:g}. *classes*: {CLASSES_EACH} classes at each client. A client keeps {LOCAL_TEST:.0%} of its rows
  for tests of its own.
- **Metric.** The global model's accuracy on common test rows, mean over the last {LAST} rounds: with so few clients at
  a time it jumps from round to round.
- **Systems.** Flower's FedAvg and FedProx; FedSAM (SAM at every client); FedLESAM; its S and D, and these without a
  perturbation, which are SCAFFOLD (weight 1) and FedDyn (0.1). *{RANDOM}* is FedLESAM with a direction drawn anew for
  each client and round, of the same length.
- **Training.** {_lengths(_CASES)}. Batches of {BATCH}, plain SGD, weight decay {WEIGHT_DECAY:g}, gradients clipped at
  {CLIPPING:g}, the rate times {DECAY:g} after each round. An update of FedSAM costs two passes; the others are not
  given more updates for that.
- **Network.** A small ResNet with GroupNorm, untrained at first.
- **Hyper-parameters** by accuracy on common validation rows, a sixth of the training rows, with another seed (1000).
  FedAvg has three learning rates; the others have the one in the middle, which was FedAvg's best before, and their own
  parameters to choose; FedSAM, FedLESAM and the control choose among the same lengths rho.
- **Details**, of the model after the last round. *{PERSONAL}*: accuracy on the rows that clients keep, mean over
  clients. *{SPEED}*: the round by which the mean of the last {WINDOW} rounds' test accuracies first reaches
  {_targets(_CASES)}; about nine tenths of what FedAvg reached before the study was run; a run that never does counts
  with all its rounds. *{ALONG}* and *{AROUND}*: by how much the loss of all clients' training rows (at most
  {MOST_ROWS}) rises when the weights move by {ALONG_BY:g} along its gradient, or by {AROUND_BY:g} in random directions
  (mean of four).
- **Runs.** Flower's strategies sample and average, its messages are sent and its client app answers them, all in one
  process; Flower's simulation gives the same weights, bit for bit.
- A seed draws who has which rows, validation rows, initial weights, the clients of each round and their batches; it is
  shared by all systems.
- **Limits.** A small network, little data, tens of rounds where the paper has 800. Flatness may matter more where a
  network can fit everything.
""".strip()

COMPARISON = Study(
    name="fedlesam",
    title="FedLESAM: clients of different data",
    question=(
        "Where clients' data differ, does moving their weights back along the global model's last change give a "
        "better global model than averaging, than SAM at every client, and than a random move of the same length?"
    ),
    metric="accuracy of the global model",
    data={"digits": DATA["digits"]},
    cases=_CASES,
    systems=(
        System(FEDAVG, {"client": "plain"}, {"rate": (1 / 3, 1.0, 3.0)}),
        System(FEDPROX, {"client": "proximal"}, {"mu": (0.01, 0.1)}),
        System(FEDSAM, {"client": "sam"}, {"rho": _RHOS}),
        System(LESAM, {"client": "lesam"}, {"rho": _RHOS}, is_method=True),
        System(RANDOM, {"client": "lesam", "direction": "random"}, {"rho": _RHOS}),
        System(SCAFFOLD, {"client": "lesam", "variant": "S", "lamb": 1.0}),
        System(LESAM_S, {"client": "lesam", "variant": "S", "lamb": 1.0}, {"rho": _FEW_RHOS}, is_method=True),
        System(FEDDYN, {"client": "lesam", "variant": "D", "lamb": 0.1}),
        System(LESAM_D, {"client": "lesam", "variant": "D", "lamb": 0.1}, {"rho": _FEW_RHOS}, is_method=True),
    ),
    comparisons=(
        Comparison(LESAM, FEDAVG),
        Comparison(LESAM, FEDPROX),
        Comparison(LESAM, FEDSAM),
        Comparison(LESAM, RANDOM),
        Comparison(FEDSAM, FEDAVG),
        Comparison(LESAM_S, SCAFFOLD),
        Comparison(LESAM_S, FEDAVG),
        Comparison(LESAM_D, FEDDYN),
        Comparison(LESAM_D, FEDAVG),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    details=_DETAILS,
)

LARGER = Study(
    name="fedlesam-larger",
    title="FedLESAM: larger sets, and clients that differ by nature",
    question="The same with photographs, and where every client has digits of one origin.",
    metric="accuracy of the global model",
    data={name: DATA[name] for name in ("origins", "images")},
    cases=_LARGER_CASES,
    systems=(
        System(FEDAVG, {"client": "plain"}),
        System(FEDSAM, {"client": "sam", "rho": _RHO}),
        System(LESAM, {"client": "lesam", "rho": _RHO}, is_method=True),
        System(RANDOM, {"client": "lesam", "direction": "random", "rho": _RHO}),
    ),
    comparisons=(
        Comparison(LESAM, FEDAVG),
        Comparison(LESAM, FEDSAM),
        Comparison(LESAM, RANDOM),
        Comparison(FEDSAM, FEDAVG),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=(
        f"As in the study `fedlesam`, with fewer systems; nothing is chosen: rho is {_RHO:g} wherever there "
        "is one, and the learning rate the same for all. "
        f"*origins*: every client has pictures of one origin, as many clients for each. {_lengths(_LARGER_CASES)}. "
        f"Targets: {_targets(_LARGER_CASES)}."
    ),
    details=_DETAILS,
)

STUDIES = (COMPARISON, LARGER)

"""The server's app."""

from flwr.app import Context
from flwr.serverapp.strategy import FedAvg, Strategy

from federated_digits.task import make_trainer
from hf_ext.trainers.federated import FedLESAM, server_app


def make_strategy(context: Context) -> Strategy:
    kind = FedLESAM if context.run_config["strategy"] == "fedlesam" else FedAvg
    return kind(fraction_train=context.run_config["fraction-train"], fraction_evaluate=0.0)


app = server_app(make_strategy, make_trainer)

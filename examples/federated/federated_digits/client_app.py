"""The clients' app."""

from federated_digits.task import make_trainer
from hf_ext.trainers.federated import client_app

app = client_app(make_trainer)

"""FedGELA's server."""

from pathlib import Path
from typing import Any

import torch
from federation import factory, run_federation, tiny_vit
from flwr.app import Message

from hf_ext.functional import weighted_average
from hf_ext.models import replace_classifier
from hf_ext.trainers.federated import FedGELA, FedGELAConfig, FedGELATrainer, client_app, server_app


def test_flowers_mean_is_the_papers(tmp_path: Path) -> None:
    """The clients' models, weighted by their numbers of rows."""
    sizes = (8, 12, 17, 30)
    make = factory(
        FedGELATrainer,
        FedGELAConfig,
        output_dir=tmp_path,
        sizes=sizes,
        make_model=lambda: replace_classifier(tiny_vit()),
    )
    replies: list[tuple[int, dict[str, Any]]] = []

    def noting(reply: Message, number: int) -> Message:
        content = reply.content
        replies.append((content["metrics"]["num-examples"], dict(content["arrays"])))
        return reply

    server = server_app(lambda _: FedGELA(fraction_evaluate=0.0), make, num_rounds=1)
    run_federation(server, client_app(make), 4, faults=dict.fromkeys(range(4), noting))
    assert sorted(size for size, _ in replies) == sorted(sizes)
    names = list(replies[0][1])
    params = [[torch.from_numpy(arrays[name].numpy()) for name in names] for _, arrays in replies]
    mean = weighted_average(params, [size for size, _ in replies])
    model = server.trainer.model.state_dict()
    for name, expected in zip(names, mean, strict=True):
        torch.testing.assert_close(model[name], expected)

"""`push_to_hub` of a Trainer: what arrives, and that its card's own code loads it again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from server import Hub
from transformers import ViTConfig, ViTForImageClassification

pytestmark = pytest.mark.slow

#: trains on the base model of the Hub, pushes with `{push}`, and notes the logits of the first rows
TRAIN = """
import time
time.sleep = lambda seconds: None
import hf_ext, torch
from peft import get_peft_model
from transformers import AutoModelForImageClassification
from hf_ext.adapters import MoLAConfig
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig

data = hf_ext.data.load("digits-rotated")["train"].select(range(0, 2400, 50))
base = AutoModelForImageClassification.from_pretrained("me/base"{base})
config = MoLAConfig(target_modules=["q_proj", "fc1"], num_experts=4, r=2, init_weights=False, {config})
args = MoLATrainingConfig(
    "out", max_steps=2, save_steps=1, logging_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True,
    {args}
)
trainer = MoLATrainer(get_peft_model(base, config), args, train_dataset=data, eval_dataset=data)
trainer.train()
trainer.evaluate()
pushed = trainer.push_to_hub({push})
rows = data[:8]
logits = trainer.model.eval()(pixel_values=rows["pixel_values"], mola_task_ids=rows["task_ids"]).logits
result = {{"logits": logits.tolist(), "oid": getattr(pushed, "oid", None)}}
"""
#: publishes a folder that brings its base model along, as the demo's does
PUBLISH = """
from hf_ext.hub_cards import create_card, push_folder

AutoModelForImageClassification.from_pretrained("me/base").save_pretrained("out/base_model")
trainer.model.save_pretrained("out")
create_card("out", run=trainer.card_facts(), base_model=None)
push_folder("out", "me/whole")
"""
#: goes on from the card's snippet
LOAD = """
data = hf_ext.data.load("digits-rotated")["train"].select(range(0, 2400, 50))[:8]
logits = model(pixel_values=data["pixel_values"], mola_task_ids=data["task_ids"]).logits
result = logits.tolist()
"""


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=10))
    model.save_pretrained(tmp_path / "base")
    hub.add("me/base", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})


def _train(config: str = "", args: str = "", push: str = "", base: str = "") -> str:
    return TRAIN.format(config=config, args=args, push=push, base=base)


def _snippet(hub: Hub, name: str) -> str:
    text = ModelCard(hub.repos[name].files()["README.md"].decode()).text
    return text.split("```python\n")[1].split("```")[0]


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("config", ['modules_to_save=["classifier"]', "train_backbone=True", 'routing="router"'])
def test_the_card_that_is_pushed_loads_what_was_trained(hub: Hub, in_process: Callable[..., Any], config: str) -> None:
    trained = in_process(_train(config, push='revision=None, private=True, dataset="digits", license="mit"'))
    repo = hub.repos["me/out"]
    assert repo.private
    assert repo.messages() == ["initial commit", "End of training"]
    assert trained["oid"] == repo.branches["main"][-1].sha
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "losses.png"} <= set(repo.files())
    assert ("routing.png" in repo.files()) == ("router" in config)
    assert not [name for name in repo.files() if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    card = ModelCard(repo.files()["README.md"].decode()).data
    assert (card.base_model, card.license, card.model_name) == ("me/base", "mit", "out")
    assert {result.metric_type for result in card.eval_results} == {"loss"}
    assert in_process(_snippet(hub, "me/out") + LOAD) == trained["logits"]


@pytest.mark.usefixtures("base")
def test_a_head_for_other_classes_than_the_base_models(hub: Hub, in_process: Callable[..., Any]) -> None:
    head = ", num_labels=12, ignore_mismatched_sizes=True"
    trained = in_process(_train('modules_to_save=["classifier"]', base=head))
    assert in_process(_snippet(hub, "me/out") + LOAD) == trained["logits"]


@pytest.mark.usefixtures("base")
def test_words_of_the_user_are_published(hub: Hub, in_process: Callable[..., Any]) -> None:
    words = "\ntrainer.create_model_card()\nopen('out/README.md', 'a').write('My words.')\ntrainer.push_to_hub()\n"
    in_process(_train() + words)
    assert hub.repos["me/out"].files()["README.md"].decode().endswith("My words.")


@pytest.mark.usefixtures("base")
def test_a_base_model_beside_the_adapter(hub: Hub, in_process: Callable[..., Any]) -> None:
    trained = in_process(_train() + PUBLISH)
    repo = hub.repos["me/whole"]
    assert {"base_model/config.json", "base_model/model.safetensors", "adapter_config.json"} <= set(repo.files())
    del hub.repos["me/base"]
    assert in_process(_snippet(hub, "me/whole") + LOAD) == trained["logits"]


@pytest.mark.usefixtures("base")
def test_the_arguments_name_the_repo(hub: Hub, in_process: Callable[..., Any]) -> None:
    asked = 'hub_model_id="team/mola", hub_revision="dev", hub_private_repo=True'
    in_process(_train(args=asked, push='"My message", blocking=False') + "\npushed.result()\n")
    repo = hub.repos["team/mola"]
    assert repo.private and repo.messages("dev")[-1] == "My message"
    assert "README.md" in repo.files("dev") and "README.md" not in repo.files("main")
    assert 'from_pretrained(base, "team/mola")' in repo.files("dev")["README.md"].decode()


#: goes on with runs that publish as they save
STRATEGIES = """
import dataclasses
from hf_ext.trainers import MoLATrainer

def run(name, **settings):
    made = dataclasses.replace(args, output_dir=name, push_to_hub=True, **settings)
    model = get_peft_model(AutoModelForImageClassification.from_pretrained("me/base"), config)
    trainer = MoLATrainer(model, made, train_dataset=data, eval_dataset=data)
    trainer.train()
    return trainer

for name in ("end", "every_save", "checkpoint", "all_checkpoints"):
    trainer = run(name, hub_strategy=name, hub_always_push=True, hub_private_repo=True)
run("epochs", save_strategy="epoch", hub_revision="dev", save_total_limit=1, num_train_epochs=1, max_steps=-1)
trainer.evaluate()
trainer.push_to_hub()
run("saved", save_strategy="no").save_model()
"""


@pytest.mark.usefixtures("base")
def test_saves_are_published_without_pickles(hub: Hub, in_process: Callable[..., Any], tmp_path: Path) -> None:
    in_process(_train() + STRATEGIES)
    assert hub.repos["me/end"].messages() == ["initial commit"]
    both = ["initial commit", *(f"Training in progress, step {step}" for step in (1, 2))]
    for name in ("every_save", "checkpoint", "all_checkpoints"):
        repo = hub.repos[f"me/{name}"]
        assert repo.private and repo.messages()[:3] == both
        for step, commit in enumerate(repo.branches["main"][1:3], 1):
            trained = (tmp_path / name / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes()
            assert commit.files["adapter_model.safetensors"] == trained
            assert {"README.md", "adapter_config.json"} < set(commit.files)
    assert hub.repos["me/all_checkpoints"].messages()[3:] == ["End of training"]
    assert hub.repos["me/epochs"].messages("dev")[-1] == "Training in progress, epoch 1"
    assert hub.repos["me/saved"].messages()[1:] == ["Model save"]
    sent = {name for repo in hub.repos.values() for log in repo.branches.values() for one in log for name in one.files}
    assert not [name for name in sent if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]


@pytest.mark.usefixtures("base")
def test_a_bad_connection_costs_nothing(hub: Hub, in_process: Callable[..., Any]) -> None:
    hub.fail(503, "POST /api/repos/create")
    hub.fail("lost_answer", "POST /api/models/me/out/commit/*")
    in_process(_train())
    assert hub.repos["me/out"].messages() == ["initial commit", "End of training"]
    assert "README.md" in hub.repos["me/out"].files()

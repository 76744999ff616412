"""Cards of folders: what is found there, what is kept, what peft leaves alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from hf_ext.hub_cards import METHODS, Method, Result, create_card, register_method
from hf_ext.hub_cards.create import card_at
from hf_ext.hub_cards.saved import FACTS_FILE
from hf_ext.hub_cards.tasks import auto_class_for, auto_class_of

TASK = "image-classification"

HISTORY = [
    {"loss": 2.0, "twd_loss": 0.5, "step": 1},
    {"loss": 1.0, "twd_loss": 0.25, "step": 2},
    {"eval_loss": 1, "step": 2},
]


def _adapter(folder: Path, **settings: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "MOLA", "r": 4, **settings}))
    return folder


def _code(folder: Path) -> str:
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def test_pictures_are_drawn_from_the_facts(tmp_path: Path) -> None:
    table = {"tasks": ["a", "b"], "weights": [[0.9, 0.1], [None, None]]}
    results = [Result("LoRA", "accuracy", 0.5), Result("MoLA", "accuracy", 0.7, 0.1, 3, is_method=True)]
    facts: dict[str, Any] = {"log_history": HISTORY, "loss_terms": ["twd_loss"], "facts": {"routing_table": table}}
    create_card(_adapter(tmp_path), results=results, **facts)
    text = (tmp_path / "README.md").read_text()
    for name in ("results.png", "losses.png", "routing.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
    assert "| twd_loss | 0.5 | 0.25 |" in text


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    card = create_card(_adapter(tmp_path), results=[Result("MoLA", "accuracy", 0.7)], log_history=HISTORY[2:])
    assert not card.plots
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "adapter_config.json", FACTS_FILE}


def test_two_numbers_need_no_picture(tmp_path: Path) -> None:
    results = [Result("LoRA", "accuracy", 0.5), Result("MoLA", "accuracy", 0.7, is_method=True)]
    assert not create_card(_adapter(tmp_path), results=results).plots


def test_of_an_adapter_is_shown_what_differs_from_its_defaults(toy: Method, tmp_path: Path) -> None:
    layers = [f"layers.{number}" for number in range(12)]
    config = LoraConfig(r=8, target_modules=layers, modules_to_save=["head"])
    get_peft_model(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in layers])}), config)
    config.save_pretrained(tmp_path)
    card = create_card(tmp_path, "toy")
    assert set(card.hyper_parameters) == {"peft_type", "r", "lora_alpha", "target_modules", "modules_to_save"}
    row = "| target_modules | layers.0, layers.1, layers.10, layers.11, layers.2 and 7 more |"
    assert row in (tmp_path / "README.md").read_text()


def test_of_places_on_this_machine_a_hyper_parameter_has_the_name_alone(tmp_path: Path) -> None:
    parts = {"teacher": "/home/me/teacher", "text": "me/text", "vision": str(tmp_path)}
    create_card(_adapter(tmp_path), run={"hyper_parameters": parts, "log_history": HISTORY})
    for name in ("README.md", FACTS_FILE):
        written = (tmp_path / name).read_text()
        assert "/home" not in written and str(tmp_path) not in written and "me/text" in written
    (tmp_path / "fer").mkdir()
    config = {"model_type": "fer", "text_model": "/home/me/text", "vision_config": {"_name_or_path": "/home/me/eyes"}}
    config["vision_config"] |= {"model_type": "timm_wrapper", "architecture": "resnet18"}
    (tmp_path / "fer" / "config.json").write_text(json.dumps(config))
    found = create_card(tmp_path / "fer").hyper_parameters
    assert (found["text_model"], found["vision_model"]) == ("text", "eyes (resnet18)")


def test_results_of_tasks_have_their_own_table_and_metadata(tmp_path: Path) -> None:
    results = [
        Result(system, "accuracy", value, is_method=system == "MoLA", group=group)
        for system, value in (("LoRA", 0.25), ("MoLA", 0.75))
        for group in ("", "photo", "sketch")
    ]
    create_card(_adapter(tmp_path), task=TASK, results=results)
    card = ModelCard.load(tmp_path / "README.md")
    assert "| | LoRA | MoLA |\n|---|---|---|\n| photo | 0.250 | 0.750 |\n| sketch | 0.250 | 0.750 |" in card.text
    assert [result.dataset_config for result in card.data.eval_results] == [None, "photo", "sketch"]


def test_what_was_said_once_stays_said(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path), license="mit", results=[Result("MoLA", "f1", 0.5, 0.1, 3, True, "task 1")])
    again = create_card(tmp_path, dataset="me/data")
    assert (again.license, again.dataset) == ("mit", "me/data")
    assert again.results == [Result("MoLA", "f1", 0.5, 0.1, 3, True, "task 1")]
    before = (tmp_path / "README.md").read_bytes()
    create_card(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before


def test_what_the_folder_says_now_is_what_counts(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    folder = _adapter(tmp_path / "old", base_model_name_or_path="me/old", routing="router")
    table = {"routing_table": {"tasks": ["a"], "weights": [[1.0]]}}
    rows = [Result(name, "accuracy", 0.5) for name in ("LoRA", "Poly")]
    rows.append(Result("MoLA", "accuracy", 0.7, is_method=True))
    create_card(folder, license="mit", run={"log_history": HISTORY, "facts": table, "results": rows, "dataset": "x"})
    folder = _adapter(folder.rename(tmp_path / "new"), base_model_name_or_path="me/new", r=16)
    card = create_card(folder)
    assert (card.base_model, card.hyper_parameters["r"]) == ("me/new", 16)
    assert (card.place, card.model_name, card.license) == ("./new", "new", "mit")
    assert {file for file, _ in card.plots} == {"results.png", "losses.png", "routing.png"}
    again = create_card(folder, run={"log_history": HISTORY, "facts": {}, "results": rows[2:]})
    assert [file for file, _ in again.plots] == ["losses.png"] and again.dataset == "unknown"


def test_what_was_said_stays_over_later_runs(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path), dataset="digits", run={"log_history": HISTORY})
    assert create_card(tmp_path, run={"log_history": HISTORY, "dataset": "me/found"}).dataset == "digits"


def test_a_run_that_only_evaluates_leaves_what_training_showed(tmp_path: Path) -> None:
    trained = {"log_history": HISTORY, "data": {"train": {"rows": 3}}, "environment": {"training time": "1 s"}}
    trained["loss_terms"] = ["twd_loss"]
    create_card(_adapter(tmp_path), run=trained)
    later = {"data": {"evaluation": {"rows": 2}}, "results": [Result("MoLA", "accuracy", 0.5)]}
    card = create_card(tmp_path, run=later)
    assert card.environment == trained["environment"] and list(card.losses) == ["loss", "twd_loss"]
    assert card.data == {"train": {"rows": 3}, "evaluation": {"rows": 2}} and len(card.results) == 1


@pytest.mark.parametrize("mean", [np.float32(0.5), torch.tensor(0.5), np.float64("nan"), float("inf")])
def test_any_number_is_a_result(tmp_path: Path, mean: Any) -> None:
    results = [Result("MoLA", "accuracy", mean, is_method=True), Result("LoRA", "accuracy", mean)]
    history = [{"loss": float("nan"), "step": 1}, {"loss": np.float32(1), "step": 2}]
    parameters = {"rate": np.float32(0.5), "size": torch.tensor(2), "odd": float("inf")}
    create_card(_adapter(tmp_path), task=TASK, results=results, log_history=history, hyper_parameters=parameters)
    before = (tmp_path / "README.md").read_bytes()
    create_card(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before and card_at(tmp_path, "me/model")
    own = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [result.metric_value for result in own or ()] == ([0.5] if math.isfinite(mean) else [])


@pytest.mark.parametrize(
    "place", ["private/data", "{here}/private/data", "~/data", "../private/data", "{here}/gone/data"]
)
def test_of_data_on_this_machine_only_the_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "private" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "private"))
    (tmp_path / "out").mkdir()
    place = place.format(here=tmp_path)
    card = create_card(_adapter(tmp_path / "out"), dataset=place, run={"dataset": place, "base_model": str(tmp_path)})
    assert card.dataset == "data" and card.metadata().datasets is None
    written = "".join((tmp_path / "out" / name).read_text() for name in ("README.md", FACTS_FILE))
    assert "private" not in written and str(tmp_path) not in written and "~" not in written


def test_values_that_json_has_no_word_for(tmp_path: Path) -> None:
    odd = {"types": {int}, "path": Path("x"), "nan": float("nan"), "one": 1}
    create_card(_adapter(tmp_path), hyper_parameters=odd)
    assert create_card(tmp_path).hyper_parameters["one"] == 1


def test_the_base_model_beside_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "base_model").mkdir()
    (tmp_path / "base_model" / "config.json").write_text("{}")
    create_card(_adapter(tmp_path), example="print(model)")
    assert f'from_pretrained("./{tmp_path.name}", subfolder="base_model", ' in _code(tmp_path)
    assert _code(tmp_path).endswith("\n\nprint(model)\n")


def test_a_base_model_without_a_name_is_the_readers_to_name(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path, base_model_name_or_path=str(tmp_path / "base")), example="print(model)")
    assert 'from_pretrained("BASE_MODEL")' in _code(tmp_path) and _code(tmp_path).endswith("\n\nprint(model)\n")
    assert "in the place of `BASE_MODEL`" in (tmp_path / "README.md").read_text()
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None
    create_card(tmp_path, base_model="me/base")
    assert "BASE_MODEL" not in (tmp_path / "README.md").read_text()


def test_the_snippet_of_a_published_card_loads_from_the_hub(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path, base_model_name_or_path="me/base"))
    published = card_at(tmp_path, "me/model")["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "me/model")' in published
    assert "# model\n" in published and ModelCard(published).data.model_name == "model"
    local = (tmp_path / "README.md").read_text()
    # and nothing else has changed
    assert published == local.replace(f'"./{tmp_path.name}"', '"me/model"').replace(tmp_path.name, "model")


def test_a_card_that_someone_has_written_in_is_theirs(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path))
    with (tmp_path / "README.md").open("a") as file:
        file.write("My words.")
    assert not card_at(tmp_path, "me/model")
    before = (tmp_path / "README.md").read_bytes(), (tmp_path / FACTS_FILE).read_bytes()
    with pytest.raises(ValueError, match=r"found '.*README.md' with text of somebody's, allowed is .*overwrite=True"):
        create_card(tmp_path, license="mit")
    assert before == ((tmp_path / "README.md").read_bytes(), (tmp_path / FACTS_FILE).read_bytes())
    create_card(tmp_path, overwrite=True)
    assert "My words" not in (tmp_path / "README.md").read_text()
    create_card(tmp_path)


def test_a_card_from_elsewhere_is_theirs(tmp_path: Path) -> None:
    (_adapter(tmp_path) / "README.md").write_text("# My model\n")
    with pytest.raises(ValueError, match=r"README\.md"):
        create_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My model\n"
    assert not (tmp_path / FACTS_FILE).exists()


def test_a_published_card_goes_on_where_it_is_downloaded(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path), license="mit")
    for name, content in card_at(tmp_path, "me/model").items():
        (tmp_path / name).write_bytes(content)
    assert create_card(tmp_path, dataset="me/data").license == "mit"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "method: found none"),
        ({"adapter_config.json": "{"}, "adapter_config.json' .*, allowed is JSON"),
        ({"adapter_config.json": "[]"}, "found a list in .*adapter_config.json"),
        *(
            ({FACTS_FILE: json.dumps({"method": "mola", kind: facts})}, f"a broken .*{FACTS_FILE}")
            for kind in ("said", "run")
            for facts in (
                *([1], {"results": [{"value": 1}]}, {"results": [{"system": "x", "metric": "y", "mean": "much"}]}),
                *(
                    {"hyper_parameters": [1]},
                    {"log_history": "abc"},
                    {"loss_terms": 3},
                    {"data": {"train": 3}},
                    {"plots": ["abc"]},
                ),
            )
        ),
        ({FACTS_FILE: '{"method": "nope"}'}, "method: found 'nope', allowed are"),
        ({"config.json": '{"model_type": "vit"}'}, "method: found none"),
    ],
)
def test_folders_that_say_nothing_or_nonsense(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        create_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_an_unknown_fact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"facts: found 'licence', allowed are .*license"):
        create_card(tmp_path, "mola", licence="mit")


def test_peft_leaves_our_card_alone(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    model.save_pretrained(tmp_path / "theirs")
    assert "Framework versions" in (tmp_path / "theirs" / "README.md").read_text()
    create_card(tmp_path / "ours", "mola", base_model="me/base")
    before = (tmp_path / "ours" / "README.md").read_bytes()
    model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "README.md").read_bytes() == before


# ------------------------------------------------------------------------------------------------ a second method
def test_another_method_brings_only_what_is_its_own(toy: Method, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**VIT, "model_type": "toy"}))
    card = create_card(tmp_path, facts={"seen": [1, 2]})
    assert card.hyper_parameters == {"toy_size": 3}
    text = (tmp_path / "README.md").read_text()
    for part in ("It adds `1`.", "@misc{toy}", "It does nothing.", "![What the toy saw](toy.png)"):
        assert part in text
    assert json.loads((tmp_path / "toy.png").read_text()) == [1, 2]
    assert f'AutoModelForImageClassification.from_pretrained("./{tmp_path.name}")' in _code(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.tags == ["hf_ext", "toy"]


def test_two_methods_on_one_card(toy: Method, tmp_path: Path) -> None:
    card = create_card(_adapter(tmp_path, num_experts=4), "toy")  # trained by one, with an adapter of the other
    assert card.further_methods == ["mola"]
    text = (tmp_path / "README.md").read_text()
    assert "## Method" in text and "## MoLA" in text
    assert "@misc{toy}" in text and "@inproceedings{zhou2024mola" in text
    assert card.hyper_parameters["num_experts"] == 4


def test_names_of_methods_are_taken_once(toy: Method) -> None:
    register_method(toy)
    with pytest.raises(ValueError, match="name: found 'toy', which is taken"):
        register_method(Method(**{**vars(toy), "title": "Another"}))


# ------------------------------------------------------------------------------------------------ whole models
VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 8, "toy_size": 3}


def test_a_whole_model_of_transformers(toy: Method, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    card = create_card(tmp_path, "toy", results=[Result("Toy", "accuracy", 0.5, is_method=True)])
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag, len(data.eval_results)) == ("transformers", TASK, 1)
    assert card.hyper_parameters == {"toy_size": 3}  # what the method picks, not what a ViT is made of
    assert f'model = AutoModelForImageClassification.from_pretrained("./{tmp_path.name}")' in _code(tmp_path)
    published = card_at(tmp_path, "me/model")["README.md"].decode()
    assert 'model = AutoModelForImageClassification.from_pretrained("me/model")' in published


def test_a_way_to_train_needs_no_words_on_loading(toy: Method, tmp_path: Path) -> None:
    way = Method(**{**vars(toy), "name": "way", "usage": "", "settings": None})
    METHODS["way"] = way
    try:
        (tmp_path / "config.json").write_text(json.dumps(VIT))
        assert create_card(tmp_path, "way").hyper_parameters == {}
        assert _code(tmp_path).startswith("from transformers import AutoModelForImageClassification\n")
        (tmp_path / "lora").mkdir()
        lora = _adapter(tmp_path / "lora", peft_type="LORA", base_model_name_or_path="me/base", task_type="SEQ_CLS")
        card = create_card(lora, "way")
    finally:
        del METHODS["way"]
    assert card.library_name == "peft" and card.hyper_parameters["r"] == 4
    assert _code(lora).startswith("from peft import PeftModel\n")
    assert 'AutoModelForSequenceClassification.from_pretrained("me/base")' in _code(lora)


def test_a_lora_on_a_model_type_of_ours(tmp_path: Path) -> None:
    create_card(_adapter(tmp_path, peft_type="LORA", base_model_name_or_path="me/matcher"), "fer")
    assert _code(tmp_path).startswith("import hf_ext\nfrom peft import PeftModel\n")
    assert 'from_pretrained("me/matcher")' in _code(tmp_path)


def test_a_model_of_a_type_of_ours_loads_as_that_whoever_trained_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fer"}))
    create_card(tmp_path, "disam")
    assert _code(tmp_path).startswith("import hf_ext")


def test_an_adapter_is_loaded_as_its_type_asks_whoever_trained_it(toy: Method, tmp_path: Path) -> None:
    create_card(_adapter(tmp_path, base_model_name_or_path="me/base"), "toy")
    assert _code(tmp_path).startswith("import hf_ext") and "PeftModel.from_pretrained(base, " in _code(tmp_path)


@pytest.mark.parametrize(
    ("config", "task", "auto_class"),
    [
        ({"auto_mapping": {"base_model_class": "BertForSequenceClassification"}}, "text-classification", None),
        ({"task_type": "SEQ_2_SEQ_LM"}, "text2text-generation", "AutoModelForSeq2SeqLM"),
        ({"task_type": "FEATURE_EXTRACTION"}, None, "AutoModel"),
        ({"auto_mapping": {"base_model_class": "BertForQuestionAnswering"}}, "question-answering", None),
        ({"architectures": ["T5ForConditionalGeneration"]}, "text2text-generation", "AutoModelForSeq2SeqLM"),
        ({"architectures": ["BartForConditionalGeneration"]}, "text2text-generation", "AutoModelForSeq2SeqLM"),
        ({"architectures": ["BertForMaskedLM"]}, "fill-mask", "AutoModelForMaskedLM"),
        ({"architectures": ["Wav2Vec2ForCTC"]}, "automatic-speech-recognition", "AutoModelForCTC"),
        ({"architectures": ["ViTModel"]}, None, "AutoModel"),
        ({"architectures": ["SomethingOfMyOwn"]}, None, None),
        ({"auto_mapping": None, "architectures": []}, None, None),
    ],
)
def test_the_task_is_that_of_the_models_class(
    tmp_path: Path, config: dict[str, Any], task: str | None, auto_class: str | None
) -> None:
    card = create_card(_adapter(tmp_path, base_model_name_or_path="me/base", **config))
    assert (card.task, ModelCard.load(tmp_path / "README.md").data.pipeline_tag) == (task, task)
    assert f"import {auto_class or auto_class_for(task)}\n" in _code(tmp_path)


def test_a_registered_class_has_its_auto_class() -> None:
    class OddConfig(PretrainedConfig):
        model_type = "odd_one"

    class OddForImages(PreTrainedModel):
        config_class = OddConfig

    AutoModelForImageClassification.register(OddConfig, OddForImages)
    assert auto_class_of(None, "OddForImages") == "AutoModelForImageClassification"

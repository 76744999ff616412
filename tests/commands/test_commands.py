"""The command line: help, mistakes, YAML, a whole training and the demo."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from peft import PeftModel
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_ext.commands.cli import main
from hf_ext.commands.lora import LoraArguments
from hf_ext.data import load
from hf_ext.hub_cards import METHODS


@pytest.fixture
def vit(tmp_path: Path) -> str:
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=10,
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


@pytest.fixture
def config_file(tmp_path: Path, vit: str) -> Path:
    file = tmp_path / "mola.yaml"
    file.write_text(
        f"model_name_or_path: {vit}\nnum_experts: 4\nr: 2\ntarget_modules: [q_proj, fc1]\n"
        f"modules_to_save: [classifier]\n"
        f"output_dir: {tmp_path / 'out'}\nmax_steps: 4\nlearning_rate: 1e-3\nsave_steps: 2\nuse_cpu: true\n"
    )
    return file


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["train"], ["train", "mola", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(arguments) == 0
    except SystemExit as stop:
        assert stop.code == 0
    text = capsys.readouterr().out
    assert "hf-ext" in text
    if "mola" in arguments:
        assert "--num_experts" in text and "--mola_task_column" in text
        assert "--adam_beta1" not in text  # TrainingArguments' hundred options only with --help-all


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.module("commands")])
def test_help_of_options_shows_real_defaults(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["train", method, option])
        text = " ".join(capsys.readouterr().out.split())
        assert "default: None" not in text and "default: )" not in text
        assert ("(default: image-classification)" in text) == (method not in ("causald", "gpl"))  # no such task
        assert ("--adam_beta1" in text) == (option == "--help-all")
        assert "--debug show the traceback of an error" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": -1}, "lora_r: found -1, allowed are integers >= 0"),
        ({"lora_r": 2, "lora_alpha": math.inf}, "lora_alpha: found inf, allowed are"),
        ({"lora_r": 2, "lora_alpha": math.nan}, "lora_alpha: found nan"),
        ({"lora_r": 2, "lora_alpha": 0}, "lora_alpha: found 0"),
        ({"lora_target_modules": ["q_proj"]}, "lora_r: found 0 with lora_target_modules"),
    ],
)
def test_options_of_a_lora(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LoraArguments(**options)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--num_expert", "4"], "did you mean num_experts?"),
        (["--num_experts", "2"], "task_ids: found ids from 0 to 3"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps: found 0, allowed are integers >= 1"),
        (["--num_experts", "four"], "num-experts: invalid int value: 'four'"),
        (["--routing", "random"], "routing"),
        (["--dataset", "no-such-data"], "allowed are digits"),
        (["--eval_split", "dev"], "split: found 'dev', allowed are"),
        (["--mola_task_column", "domain"], "found no column 'domain' in train_dataset"),
        (["--model_name_or_path", "/no/such/model"], "/no/such/model"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint: found no complete checkpoint"),
    ],
)
def test_mistakes_get_one_line(
    extra: list[str], message: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "mola", "--config", str(config_file), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(config_file: Path) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        main(["train", "mola", "--config", str(config_file), "--num_expert", "4", "--debug"])


def test_unknown_yaml_keys_are_refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_text(config_file.read_text() + "learning_rat: 1\n")
    assert main(["train", "mola", "--config", str(config_file)]) == 2
    assert "did you mean learning_rate?" in capsys.readouterr().err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ext.commands.mola.demo", interrupted)
    assert main(["demo"]) == 130


HTTPError: Any = HfHubHTTPError.__bases__[0]


@pytest.mark.parametrize("error", [HTTPError("no route to host\nat all"), OfflineModeIsEnabled("offline")])
def test_no_way_to_reach_the_hub(
    error: Exception, config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "init_hf_repo", unreachable)
    assert main(["train", "mola", "--config", str(config_file), "--push_to_hub", "true"]) == 2
    message = capsys.readouterr().err
    assert f"push_to_hub: found no way to reach the Hub ({str(error).splitlines()[0]}), allowed is training" in message
    assert "Traceback" not in message


def test_train_leaves_a_folder_that_loads(config_file: Path, tmp_path: Path, vit: str) -> None:
    # the command line wins over the file
    assert main(["train", "mola", "--config", str(config_file), "--r", "3"]) == 0
    out = tmp_path / "out"
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3
    assert ModelCard.load(out / "README.md").data.eval_results
    metrics = json.loads((out / "eval_results.json").read_text())
    assert {f"eval_task_rotated_{angle}_accuracy" for angle in (0, 90, 180, 270)} <= set(metrics)
    model = PeftModel.from_pretrained(ViTForImageClassification.from_pretrained(vit), out)
    batch = load("digits-rotated")["test"][:4]
    assert model(pixel_values=batch["pixel_values"], mola_task_ids=batch["task_ids"]).logits.shape == (4, 10)
    # and resumes
    assert (
        main(
            [
                "train",
                "mola",
                "--config",
                str(config_file),
                "--r",
                "3",
                "--resume_from_checkpoint",
                "true",
                "--max_steps",
                "6",
            ]
        )
        == 0
    )
    assert (out / "checkpoint-6").is_dir()


def test_train_on_tables_of_pixels(tmp_path: Path, vit: str) -> None:
    rows = load("digits-rotated")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows[split].with_format(None).select(range(0, 2400, 100)).to_parquet(tmp_path / "data" / f"{split}.parquet")
    arguments = ["train", "mola", "--model_name_or_path", vit, "--dataset", str(tmp_path / "data")]
    arguments += ["--num_experts", "4", "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu", "true"]
    assert main(arguments) == 0


def test_train_on_images(tmp_path: Path) -> None:
    """A folder of images with a table of their labels and tasks, through the model's own processor."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    for split in ("train", "test"):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        lines = ["file_name,kind,task_ids"]
        for index in range(6):
            Image.new("L", (20, 20), 40 * index).save(folder / f"{index}.png")
            lines.append(f"{index}.png,{'dark' if index < 3 else 'light'},{index % 2}")
        (folder / "metadata.csv").write_text("\n".join(lines))
    arguments = ["train", "mola", "--model_name_or_path", str(tmp_path / "vit"), "--dataset", str(tmp_path / "images")]
    arguments += ["--label_column", "kind", "--num_experts", "2", "--modules_to_save", "classifier"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "true"]
    assert main(arguments) == 0
    assert "eval_task_1_accuracy" in json.loads((tmp_path / "out" / "eval_results.json").read_text())


@pytest.mark.parametrize(("mean", "code"), [([0.5], 0), ([0.5] * 3, 2)])
def test_images_for_a_model_of_grey_ones(
    mean: list[float], code: int, tmp_path: Path, vit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"height": 8, "width": 8}
    ViTImageProcessor(size=size, image_mean=mean, image_std=mean).save_pretrained(vit)
    for place in ("train/dark", "train/light", "test/dark", "test/light"):
        (tmp_path / "images" / place).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (0, 9, number)).save(tmp_path / "images" / place / f"{number}.png")
    arguments = ["train", "divbs", "--model_name_or_path", vit, "--dataset", str(tmp_path / "images")]
    assert main([*arguments, "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu", "true"]) == code
    assert code == 0 or "model_name_or_path: found" in capsys.readouterr().err


def test_train_on_texts(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "book"]
    BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]").save_pretrained(tmp_path / "bert")
    (tmp_path / "texts").mkdir()
    rows = "text,label,domain\n" + "good film,yes,0\nbad book book,no,1\n" * 4
    for split in ("train", "test"):
        (tmp_path / "texts" / f"{split}.csv").write_text(rows)
    config = tmp_path / "texts.yaml"
    config.write_text(
        f"model_name_or_path: {tmp_path / 'bert'}\ndataset: {tmp_path / 'texts'}\ntask: text-classification\n"
        f"output_dir: {tmp_path / 'out'}\nmola_task_column: domain\nnum_experts: 2\nrouting: router\n"
        "target_modules: [query, value]\nmodules_to_save: [classifier]\nmax_steps: 2\nuse_cpu: true\n"
    )
    assert main(["train", "mola", "--config", str(config)]) == 0
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == "text-classification"


def test_train_a_lora_with_another_method(tmp_path: Path, vit: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["train", "divbs", "--model_name_or_path", vit, "--dataset", "digits", "--output_dir", str(out)]
    arguments += ["--max_steps", "2", "--use_cpu", "true", "--lora_alpha", "8"]
    assert main(arguments) == 2
    assert "lora_r: found 0 with lora_alpha, allowed is a rank >= 1" in capsys.readouterr().err
    assert main([*arguments, "--lora_r", "2"]) == 0
    written = json.loads((out / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["modules_to_save"]) == (2, 8, ["classifier"])
    PeftModel.from_pretrained(ViTForImageClassification.from_pretrained(vit), out)


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], run_snippet: Callable[..., str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--seeds", "1", "--steps", "60"]) == 0
    text = capsys.readouterr().out
    assert "MoLA-Grad" in text and "LoRA r=16" in text
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "results.png", "base_model"} <= names
    card = ModelCard.load(out / "README.md")
    assert card.data.eval_results[0].metric_type == "accuracy"
    assert "Router" not in str(card.data) and "| **MoLA-Router (task unknown)** |" in card.text
    assert "those of MoLA-Grad (task known) with seed 0" in card.text
    assert "*Where MoLA-Router (task unknown), trained like it and not in this folder, sends each task*" in card.text
    snippet = card.text.split("```python\n")[1].split("```")[0]
    assert "tensor(" in run_snippet(snippet, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "systems"),
    [("divbs", ["DivBS", "uniform", "all 160 candidates"]), ("disam", ["DISAM", "SAM", "plain Trainer"])],
)
def test_demos_of_trainers(
    method: str,
    systems: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_snippet: Callable[..., str],
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", method, "--out", str(out), "--seeds", "1", "--steps", "3"]) == 0
    text = capsys.readouterr().out
    assert all(system in text for system in systems)
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= names
    assert names & {"results.png", "results_0.png"}  # of one metric, of several
    card = ModelCard.load(out / "README.md")
    assert card.data.eval_results[0].metric_type == "accuracy"
    snippet = card.text.split("```python\n")[1].split("```")[0]
    assert "tensor(" in run_snippet(snippet, cwd=tmp_path)


@pytest.mark.parametrize("option", ["--seeds", "--steps"])
def test_demo_refuses_nonsense(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", option, "0", "--out", str(tmp_path)]) == 2
    assert f"{option}: found 0" in capsys.readouterr().err

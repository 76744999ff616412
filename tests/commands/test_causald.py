"""`hf-ext train causald` and `hf-ext demo causald`."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

from hf_ext.commands.cli import main
from hf_ext.commands.rankings import metrics_of
from hf_ext.commands.recommenders import InteractionArguments, RecommenderArguments
from hf_ext.commands.teachers import TeacherArguments, Teachers
from hf_ext.data.interactions import NextItems
from hf_ext.models import SequentialRecommenderForNextItem
from hf_ext.trainers import CausalDConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
TITLES = {f"P {item:02d}": f"{word} №{item}" for item, word in enumerate(["Käse", "寿司", "Tee, grün"] * 3)}
COLUMNS = ["customer", "product", "bought_at", "product name"]


def purchases(file: Path, **changes: Any) -> Path:
    """A table of 20 customers; `changes` are values of its first row, by column."""
    rng = np.random.default_rng(0)
    rows = []
    for customer in range(20):
        for day, item in enumerate(rng.integers(0, 9, 4 + customer % 5), start=1):
            product = f"P {item:02d}"
            rows.append([f"customer {customer}", product, f"2024-03-{day:02d}T08:00:00", TITLES[product]])
    rows[0] = [changes.get(name, value) for name, value in zip(COLUMNS, rows[0], strict=True)]
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([COLUMNS, *rows])
    return file


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return purchases(tmp_path / "purchases.csv")


def short(table: Path | str, out: Path, *words: str) -> list[str]:
    """Words of a short training with two small teachers on these columns."""
    names = ["--user_column", "customer", "--item_column", "product", "--time_column", "bought_at"]
    sizes = ["--hidden_size", "4", "--teacher_hidden_size", "4", "--max_length", "5", "--causald_num_candidates", "4"]
    options = ["--max_steps", "2", "--teachers", "sasrec,deepfm", "--use_cpu", "true", "--report_to", "none"]
    common = ["train", "causald", "--dataset", str(table), "--output_dir", str(out), "--disable_tqdm", "true"]
    return [*common, *names, *sizes, *options, *words]


def interactions(table: Path, **options: Any) -> InteractionArguments:
    names = {"user_column": "customer", "item_column": "product", "time_column": "bought_at"}
    return InteractionArguments(str(table), **{**names, **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_from_a_table_to_titles(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run_snippet: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    assert main(short(table, out, "--title_column", "product name")) == 0
    printed = capsys.readouterr().out
    systems = ("popularity", "item-kNN", "teacher 1 (sasrec)", "teacher 2 (deepfm)", "CausalD")
    for word in (*systems, "NDCG@10", "head", "tail", "gap", "coverage@10"):
        assert word in printed
    assert printed.count("  after ") == 3 and any(title in printed for title in TITLES.values())
    lines = printed.partition("to use it:\n")[2]
    assert len(lines.splitlines()) == 3
    shown = "\n".join(line.strip() for line in lines.splitlines()).replace(str(out), out.name)
    # the card has the baselines beside the model
    card = ModelCard.load(out / "README.md").text
    for system in (*systems[:-1], "**CausalD**"):
        assert f"| {system} | ndcg@10 |" in card and f"| {system} | coverage@10 |" in card
    head = next(line for line in card.splitlines() if line.startswith("| head |"))
    assert head.count("|") >= 2 + len(systems)
    assert "| front door | ensemble |" in card and "split by leave one out" in card
    # its code runs, and so does what was printed
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    by_print, *by_card = run_snippet("\n".join([shown, *snippets]), cwd=tmp_path).strip().splitlines()
    for text in (by_print, " ".join(by_card)):
        assert any(title in text for title in TITLES.values())
    # the numbers are those of the saved model on the test part
    test = NextItems(interactions(table).load(), "test", max_length=5)
    found = json.loads((out / "eval_results.json").read_text())
    for name, value in metrics_of(str(out), test, "cpu").items():
        assert found[f"eval_{name}"] == pytest.approx(value, nan_ok=True), name
    assert AutoModel.from_pretrained(out).config.architecture == "deepfm"


def test_teachers_are_found_again(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a run that is equal, which gives the same student; another one is refused."""
    out = tmp_path / "out"
    words = short(table, out, "--causald_front_door", "bank", "--causald_bank_size", "3")
    assert main([*words, "--save_steps", "1"]) == 0
    teachers = sorted((out / "causald_teachers").iterdir())
    assert [json.loads((one / "config.json").read_text())["architecture"] for one in teachers] == ["sasrec", "deepfm"]
    assert json.loads((teachers[0] / "config.json").read_text())["direct_rank"] == 8
    assert weights(teachers[0])["model.item_embeddings.weight"].shape == (10, 4)
    assert "teacher 1 of 2: sasrec" in capsys.readouterr().out
    first, kept = weights(out), [weights(one) for one in teachers]
    for further in (["--resume_from_checkpoint", str(out / "checkpoint-1")], []):
        assert main([*words, *further]) == 0
        assert "teacher 1 of 2" not in capsys.readouterr().out
        assert are_equal(first, weights(out))
    longer = ["--max_steps", "3", "--resume_from_checkpoint", "true"]
    assert main([*words, *longer]) == 0 and (out / "checkpoint-3").is_dir()
    assert all(are_equal(old, weights(one)) for old, one in zip(kept, teachers, strict=True))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert main([*words, "--teacher_hidden_size", "8"]) == 2
    message = capsys.readouterr().err
    assert "output_dir: found a teacher with other values of hidden_size in" in message
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_saved_teachers(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    assert main(short(table, first)) == 0
    saved = first / "causald_teachers" / "1"
    before = weights(saved)
    assert main(short(table, out, "--teachers", f"{saved},gru")) == 0
    assert are_equal(before, weights(saved))
    assert [folder.name for folder in (out / "causald_teachers").iterdir()] == ["2"]
    card = ModelCard.load(out / "README.md").text
    assert "| teachers | sasrec, gru |" in card and "| teacher 1 (1) | ndcg@10 |" in card and str(tmp_path) not in card
    other = purchases(tmp_path / "other.csv", product="P 99")
    capsys.readouterr()
    assert main(short(other, tmp_path / "third", "--teachers", str(saved))) == 2
    assert "teachers: found 9 items in teacher 0 (sasrec of" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--told_apart", "catalogue"], ["--causald_debias", "ips"]])
@pytest.mark.parametrize("architecture", ["sasrec", "gru", "din", "deepfm"])
def test_a_recommender_alone(architecture: str, words: list[str], table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    alone = ["--teachers", "none", "--causald_alpha", "0", "--architecture", architecture]
    assert main(short(table, out, *alone, *words)) == 0
    assert AutoModel.from_pretrained(out).config.architecture == architecture
    card = ModelCard.load(out / "README.md").text
    assert "| teachers | none |" in card and "No teacher has taught this model" in card
    assert "| item-kNN | ndcg@10 |" in card
    assert not (out / "causald_teachers").exists() and not (out / "causald_effects").exists()


def test_what_each_teacher_sees(table: Path, tmp_path: Path) -> None:
    """All, some of the users, or a span of time; together everything, and nothing twice."""
    split = interactions(table).load()
    args = CausalDConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=2)
    options = RecommenderArguments(max_length=5)
    rows = options.rows(split, args)
    log = split.interactions
    times = np.concatenate([log.times[log.offsets[u] + 1 : log.offsets[u] + split.train_ends[u]] for u in range(20)])
    for division in ("all", "users", "time"):
        chosen = TeacherArguments(["deepfm,deepfm,gru"], teacher_data=division)  # type: ignore[arg-type]
        parts = [one.rows for one in Teachers(chosen, options, split, args)._waiting.values()]
        if division == "all":
            assert [part.digest for part in parts] == [rows.digest] * 3
            continue
        places = [np.array(part.indices) for part in parts]
        assert sorted(np.concatenate(places)) == list(range(len(rows)))
        if division == "users":
            users = [set(rows.users[place]) for place in places]
            assert not users[0] & users[1] and not users[0] & users[2] and sum(map(len, users)) == 20
        else:
            spans = [(times[place].min(), times[place].max()) for place in places]
            assert spans[0][1] <= spans[1][0] and spans[1][1] <= spans[2][0]


def test_teachers_of_one_architecture_differ(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(short(table, out, "--teachers", "gru", "gru", "--learning_rate", "0")) == 0
    one, two = (weights(out / "causald_teachers" / number) for number in ("1", "2"))
    assert not are_equal(one, two)


def test_options_from_a_file(table: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "options.yaml", tmp_path / "out"
    file.write_text(
        f"dataset: {table}\nuser_column: customer\nitem_column: product\ntime_column: none\n"
        f"title_column: product name\narchitecture: gru\nteachers: [deepfm, sasrec]\n"
        f"output_dir: {out}\nmax_steps: 2\nuse_cpu: true\ncausald_num_candidates: 4\n"
        "split: leave_one_out\nhidden_size: 4\n"
    )
    assert main(["train", "causald", "--config", str(file), "--teachers", "gru"]) == 0
    assert [folder.name for folder in (out / "causald_teachers").iterdir()] == ["1"]
    assert AutoModel.from_pretrained(out).items.titles


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", ""], "dataset: found nothing"),
        (["--dataset", "./nope.csv"], "name: found './nope.csv'"),
        (
            ["--user_column", "buyer"],
            "user_column: found 'buyer', of which there is none, allowed are customer, product",
        ),
        (["--title_column", "name"], "title_column: found 'name', of which there is none"),
        (["--time_column", "product"], "time_column: found 'product', which is the item_column too"),
        (["--split", "time", "--time_column", "none"], "interactions: found no times"),
        (["--teachers", "none"], "teachers: found none with causald_alpha=0.7"),
        (["--causald_alpha", "0"], "teachers: found sasrec, deepfm with causald_alpha=0, allowed is 'none'"),
        (["--teachers", "bert"], "teachers: found 'bert', allowed are sasrec, gru, din, deepfm"),
        (["--teachers", "./nope"], "teachers: found './nope', which is no folder"),
        (["--teacher_data", "time", "--time_column", "none"], "teacher_data: found 'time' with time_column 'none'"),
        (["--causald_num_candidates", "99"], "causald_num_candidates: found 99, allowed are at most 9"),
        (["--causald_teacher_weights", "1"], "causald_teacher_weights: found 1, allowed is one for each of 2"),
        (["--causald_front_door", "bank", "--teacher_direct_rank", "0"], "causald_front_door: found 'bank' and teach"),
        (["--hidden_size", "0"], "hidden_size: found 0, allowed are integers >= 1"),
        (["--architecture", "sasrec", "--hidden_size", "5"], "num_attention_heads: found 2 with hidden_size=5"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint: found no complete checkpoint"),
        (["--causald_alfa", "1"], "did you mean causald_alpha?"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    words: list[str], message: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(short(table, tmp_path / "out", *words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-ext: error: ") and message in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("customer", "", "customer: found"),
        ("bought_at", "yesterday", "bought_at: found 'yesterday' in row 0"),
        ("bought_at", "", "bought_at: found"),
        ("product", "nan", "product: found 'nan' in row 0"),
        ("product name", "Brot", "titles: found"),
        ("product", "x" * 600, "ids: found text of 600 characters"),
    ],
)
def test_tables_that_cannot_be_used(
    column: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = purchases(tmp_path / "purchases.csv", **{column: value})
    assert main(short(table, tmp_path / "out", "--title_column", "product name")) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-ext: error: ") and message in error


def test_names_that_are_code_or_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Titles and ids of strangers are text: in what is printed, on the card and in the code that loads the model."""
    evil = "'];import os;os.mkdir('gone')#[red]{{ 7 * 7 }}\x1b[31m\n"
    table = purchases(tmp_path / "purchases.csv", product=evil, **{"product name": evil})
    out = tmp_path / "out"
    assert main(short(table, out, "--title_column", "product name")) == 0
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert evil in AutoModel.from_pretrained(out).items.ids
    exec(printed.partition("to use it:\n")[2].replace("\n  ", "\n").strip(), {})
    assert not (Path.cwd() / "gone").exists()


@pytest.mark.slow
def test_demo_and_the_launch_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_snippet: Callable[..., str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "causald", "--out", str(out), "--seeds", "1", "--steps", "3"]) == 0
    printed = capsys.readouterr().out
    systems = ("popularity", "student alone", "the best teacher", "the plain ensemble", "CausalD, bank")
    assert all(system in printed for system in systems)
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_recsys.py", "items.json"} <= names
    assert "causald_effects" not in names
    card = ModelCard.load(out / "README.md")
    assert "| popularity | NDCG@10, taken next |" in card.text and "| **CausalD, bank** | tail |" in card.text
    snippets = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert re.search(
        r"(kettle|lamp|novel|jacket|drill|teapot|puzzle|blanket) \d+", run_snippet("\n".join(snippets), cwd=tmp_path)
    )
    assert isinstance(AutoModel.from_pretrained(out), SequentialRecommenderForNextItem)

    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "cpu.yaml"), str(EXAMPLES / "causald.py")]
    command += ["--config", str(EXAMPLES / "causald_shop.yaml"), "--max_steps", "2", "--use_cpu", "true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "causald_shop" / "model.safetensors").is_file()
    assert "| head |" in (tmp_path / "causald_shop" / "README.md").read_text()

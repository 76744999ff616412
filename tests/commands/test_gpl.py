"""`hf-ext train gpl` and `hf-ext demo gpl`."""

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
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

from hf_ext.commands.cli import main
from hf_ext.commands.graphs import RANKED, GraphArguments
from hf_ext.models import GraphPUModel

EXAMPLES = Path(__file__).parents[2] / "examples"
NODES, KNOWN = 60, 12  # half of the nodes are positive, of which the first ones are known


def tables(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Nodes (parquet) and edges (csv) of two groups; `changes` are columns of the nodes."""
    rng = np.random.default_rng(0)
    positive = np.arange(NODES) < NODES // 2
    features = rng.normal(size=(NODES, 3)) + 2 * positive[:, None]
    known = (np.arange(NODES) < KNOWN).astype(int)
    columns = {"account": [f"№ {node}" for node in range(NODES)], "is_fraud": known.tolist()}
    columns |= {f"f{number}": features[:, number].tolist() for number in range(3)}
    columns |= {"group": positive.astype(int).tolist(), "kind": np.where(positive, "fräulich", "ok").tolist()}
    nodes, edges = folder / "nodes.parquet", folder / "edges.csv"
    Dataset.from_dict({**columns, **changes}).to_parquet(nodes)
    with edges.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["from", "to"])
        for node in range(NODES):
            for other in rng.choice(NODES // 2, 2) + (0 if positive[node] else NODES // 2):
                if other != node:
                    rows.writerow([f"№ {node}", f"№ {other}"])
    return nodes, edges


@pytest.fixture
def graph(tmp_path: Path) -> tuple[Path, Path]:
    return tables(tmp_path)


def short(graph: tuple[Path, Path], out: Path, *words: str, known: str = "positive_column") -> list[str]:
    """Words of a short training on these tables."""
    nodes, edges = map(str, graph)
    names = ["--id_column", "account", "--source_column", "from", "--target_column", "to"]
    names += ["--feature_columns", "f0", "f1", "f2"]
    names += ["--positive_column", "is_fraud"] if known == "positive_column" else ["--label_column", "group"]
    options = ["--max_steps", "4", "--gpl_warmup_epochs", "2", "--use_cpu", "true", "--report_to", "none"]
    common = ["train", "gpl", "--nodes", nodes, "--edges", edges, "--output_dir", str(out), "--disable_tqdm", "true"]
    return [*common, *names, *options, *words]


def ranking(out: Path) -> list[dict[str, str]]:
    with (out / RANKED).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_from_tables_to_a_ranking(
    graph: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], run_snippet: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    assert main(short(graph, out)) == 0
    printed = capsys.readouterr().out
    assert "60 nodes" in printed and "12 are known to be positive" in printed
    assert re.search(r"about [\d.]+% of the unlabelled nodes are positive, \d+ of 48, .*\(95 %: [\d.]+% to", printed)
    assert "held-out positives" in printed
    rows = ranking(out)
    assert [row["id"] for row in rows] != sorted(row["id"] for row in rows)
    assert {row["id"] for row in rows} == {f"№ {node}" for node in range(KNOWN, NODES)}
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {row["positive"] for row in rows} <= {"0", "1"}
    # as the card and its code have it
    card = ModelCard.load(out / "README.md").text
    assert "![" in card and "class_prior.png" in card and (out / "class_prior.png").is_file()
    assert "| gpl_objective | gpl |" in card and "graph of 60 nodes and " in card and str(tmp_path) not in card
    assert re.search(r"\| prior_interval \| 0\.\d+ to [01]\.?\d* \|", card)
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "tensor" in run_snippet("\n".join(snippets), cwd=tmp_path)
    model = AutoModel.from_pretrained(out)
    assert isinstance(model, GraphPUModel) and 0 < model.config.class_prior < 1


def test_the_ranking_is_what_the_saved_folder_says(graph: tuple[Path, Path], tmp_path: Path) -> None:
    """By the code that is printed: the model and, of free ones, the edges' weights."""
    out = tmp_path / "out"
    assert main(short(graph, out, "--gpl_guide", "mlp")) == 0
    nodes, edges = map(str, graph)
    options = {"id_column": "account", "source_column": "from", "target_column": "to", "positive_column": "is_fraud"}
    data = GraphArguments(nodes=nodes, edges=edges, feature_columns=["f0", "f1", "f2"], **options).load()  # type: ignore[arg-type]
    model = AutoModel.from_pretrained(out)
    weights = load_file(out / "edge_weights.safetensors")
    found = model.predict(data.x, **weights)
    names = [data.node_ids[place] for place in found.ranked(among=~data.positive_mask)]
    assert [row["id"] for row in ranking(out)] == names
    assert [int(row["positive"]) for row in ranking(out)] == [
        int(found.positive[place]) for place in found.ranked(among=~data.positive_mask)
    ]


def test_classes_that_are_known(graph: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A share of one is hidden, and what was found of it is evaluated."""
    out = tmp_path / "out"
    assert main(short(graph, out, "--positive_classes", "1", "--label_share", "0.4", known="label_column")) == 0
    printed = capsys.readouterr().out
    assert "12 are known to be positive" in printed
    results = json.loads((out / "eval_results.json").read_text())
    assert {"eval_f1", "eval_auc", "eval_f1_at_prior", "eval_prior_error"} <= results.keys()
    card = ModelCard.load(out / "README.md").text
    assert "reliability.png" in card and "| auc |" in card


def test_classes_have_names(graph: tuple[Path, Path]) -> None:
    nodes, edges = map(str, graph)
    names = {"id_column": "account", "source_column": "from", "target_column": "to", "feature_columns": ["f0"]}

    def masks(**options: Any) -> Any:
        found = GraphArguments(nodes=nodes, edges=edges, **names, label_seed=1, **options).load()  # type: ignore[arg-type]
        return found.positive_mask

    named = masks(label_column="kind", positive_classes=["fräulich"])
    assert torch.equal(named, masks(label_column="group", positive_classes=["1"]))
    assert named.sum() == 15 and named.nonzero().max() < NODES // 2
    with pytest.raises(ValueError, match="positive_classes: found 'fraud', allowed are fräulich, ok"):
        masks(label_column="kind", positive_classes=["fraud"])


@pytest.mark.parametrize(
    "words",
    [
        ["--gpl_objective", "nnpu"],
        ["--gpl_prior", "0.3"],
        ["--conv", "mlp"],
        ["--gpl_neighbors", "3", "3", "--per_device_train_batch_size", "64"],
        ["--gpl_edges", "scorer"],
    ],
)
def test_other_ways(words: list[str], graph: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(short(graph, out, *words)) == 0
    assert len(ranking(out)) == NODES - KNOWN


def test_a_run_is_resumed(graph: tuple[Path, Path], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(short(graph, whole)) == 0
    assert main(short(graph, parts, "--save_steps", "3", "--save_strategy", "steps")) == 0
    assert main(short(graph, parts, "--resume_from_checkpoint", str(parts / "checkpoint-3"))) == 0
    assert (whole / RANKED).read_bytes() == (parts / RANKED).read_bytes()
    one, other = (load_file(out / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_options_from_a_file(graph: tuple[Path, Path], tmp_path: Path) -> None:
    file, out = tmp_path / "options.yaml", tmp_path / "out"
    nodes, edges = graph
    file.write_text(
        f"nodes: {nodes}\nedges: {edges}\nid_column: account\nsource_column: from\ntarget_column: to\n"
        f"feature_columns: [f0, f1]\npositive_column: is_fraud\noutput_dir: {out}\nmax_steps: 3\nuse_cpu: true\n"
        "gpl_warmup_epochs: 1\nconv: sage\nhidden_size: 4\ngpl_prior: bbe\n"
    )
    assert main(["train", "gpl", "--config", str(file), "--hidden_size", "8"]) == 0
    config = AutoModel.from_pretrained(out).config
    assert (config.conv, config.hidden_size, config.num_features) == ("sage", 8, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "digits-graph"], "dataset: found dataset 'digits-graph', nodes"),
        (["--positive_column", "fraud"], "fraud"),
        (["--source_column", "source"], "source"),
        (["--feature_columns", "f9"], "f9"),
        (["--positive_classes", "1"], "positive_classes: found ['1'] for a graph whose known positives are given"),
        (["--label_share", "0.3"], "label_share: found 0.3 for a graph whose known positives are given"),
        (["--label_share", "0"], "label_share: found 0.0, allowed are numbers in (0, 1]"),
        (["--gpl_prior", "1.5"], "gpl_prior: found"),
        (["--gpl_objective", "pu"], "gpl-objective"),
        (["--conv", "gat", "--hidden_size", "5"], "heads: found 4 with hidden_size=5"),
        (["--gpl_warmup", "3"], "did you mean gpl_warmup_epochs?"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint: found no complete checkpoint"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    words: list[str], message: str, graph: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    assert main(short(graph, tmp_path / "out", *words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-ext: error: ") and message in error and "Traceback" not in error
    assert {name: content for name, content in files(tmp_path).items() if not name.startswith("out")} == before
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("graph_words", "message"),
    [
        ([], "dataset: found nothing, allowed is two tables (--nodes, --edges), an npz file"),
        (["--nodes", "nodes.parquet"], "edges: found nothing, allowed is a csv or parquet file"),
        (["--nodes", "n.csv", "--edges", "e.csv", "--dataset", "d"], "dataset: found dataset 'd', nodes 'n.csv'"),
        (["--dataset", "./nope.npz"], "./nope.npz"),
    ],
)
def test_no_graph(graph_words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "gpl", "--output_dir", str(tmp_path / "out"), *graph_words]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_known_of_the_nodes(
    graph: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, edges = map(str, graph)
    words = ["--id_column", "account", "--source_column", "from", "--target_column", "to", "--max_steps", "1"]
    assert (
        main(["train", "gpl", "--nodes", nodes, "--edges", edges, "--output_dir", str(tmp_path / "out"), *words]) == 2
    )
    assert "positive_column: found None, and no label_column" in capsys.readouterr().err


def test_ids_that_are_code_or_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids of strangers are text: in what is printed and in the ranking."""
    evil = "'];[red]{{ 7 * 7 }}\x1b[31m\n,\"=1+1"
    nodes, edges = tables(tmp_path)
    rows = Dataset.from_parquet(str(nodes)).to_dict()
    rows["account"] = [evil if name == "№ 40" else name for name in rows["account"]]
    Dataset.from_dict(rows).to_parquet(nodes)
    text = edges.read_text(encoding="utf-8").splitlines()
    with edges.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for line in text:
            writer.writerow([evil if name == "№ 40" else name for name in line.split(",")])
    out = tmp_path / "out"
    assert main(short((nodes, edges), out)) == 0
    assert "\x1b[31m" not in capsys.readouterr().out
    assert evil in {row["id"] for row in ranking(out)}


WITHOUT_EXTRA = """
import contextlib, io, sys

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch_geometric":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from hf_ext.commands.cli import main

for words in (["demo", "gpl"], ["train", "gpl", "--dataset", "digits-graph"]):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        assert main(words) == 2
    assert "pip install 'hf-ext[graph]'" in error.getvalue(), error.getvalue()
try:
    main(["train", "gpl", "--help"])
except SystemExit as stop:
    assert stop.code == 0
"""


def test_without_the_extra_it_is_named(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    assert "--positive_column" in run_snippet(WITHOUT_EXTRA, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_demo_and_the_launch_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_snippet: Callable[..., str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "gpl", "--out", str(out), "--seeds", "1", "--steps", "4"]) == 0
    assert "ready for the Hub" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_graph.py", "class_prior.png"} <= names
    card = ModelCard.load(out / "README.md")
    for system in ("unlabelled as negative", "nnPU", "ranked by the graph", "ranked by features", "**GPL**"):
        assert f"| {system} | F1 unlike |" in card.text and f"| {system} | prior error alike |" in card.text
    snippets = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert run_snippet("\n".join(snippets), cwd=tmp_path)
    assert isinstance(AutoModel.from_pretrained(out), GraphPUModel)

    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "cpu.yaml"), str(EXAMPLES / "gpl.py")]
    command += ["--config", str(EXAMPLES / "gpl_digits.yaml"), "--num_train_epochs", "4", "--use_cpu", "true"]
    command += ["--gpl_warmup_epochs", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "gpl_digits" / "model.safetensors").is_file()
    assert len(ranking(tmp_path / "gpl_digits")) > 1000

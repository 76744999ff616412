"""READMEs: their snippets run, their links lead somewhere, their tables say what results and code say."""

import dataclasses
import importlib
import json
import re
import shutil
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline

from hf_ext.commands.readme import rewritten
from hf_ext.hub_cards import METHODS

SMALL_MODELS = """
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "happy", "neutral", "expression"]
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("text")
BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained("text")
config = ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)
ResNetForImageClassification(config).save_pretrained("vision")
ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("vision")
"""
TRAINED_TEMPLATE = """
from dataclasses import replace

import hf_ext
from transformers import ViTConfig, ViTForImageClassification

from hf_ext.hub_cards import METHODS, register_method

register_method(replace(METHODS["disam"], name="cool"))
sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 1}
model = ViTForImageClassification(ViTConfig(num_attention_heads=1, intermediate_size=8, num_labels=10, **sizes))
args = CoolConfig(output_dir="out", max_steps=2, logging_steps=1, report_to="none")
trainer = CoolTrainer(model=model, args=args, train_dataset=hf_ext.data.load("digits-domains")["train"])
trainer.train()
print(*trainer.state.log_history[0])
CoolArguments(cool_rho=-1.0)
"""
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "examples" / "results"
FOLDERS = ("adapters", "examples", "hf_ext", "hub_cards", "trainers", ".github")
PAGES = [README, *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
_SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<place>[^)\s]+)\)")


def folder_of(method: str) -> Path:
    """That of its trainer, within `trainers/`, wherever it lies there."""
    (found,) = (path.parent for path in (ROOT / "trainers").rglob("__init__.py") if path.parent.name == method)
    return found


def page_of(method: str) -> Path:
    return folder_of(method) / "README.md"


def snippets_of(page: Path) -> list[str]:
    return _SNIPPET.findall(page.read_text())


def links_of(page: Path) -> list[tuple[str, str]]:
    """Text and target of every link within the repository."""
    found = _LINK.findall(_CODE_BLOCK.sub("", page.read_text()))
    return [(text, place) for text, place in found if not place.startswith(("http", "mailto"))]


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", _CODE_BLOCK.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def table_under(title: str, page: Path) -> list[list[str]]:
    """Rows of the first table after a heading, without its head."""
    section = page.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


# ---------------------------------------------------------------------------------------------------- results
def test_tables_are_made_from_the_results() -> None:
    text = (RESULTS / "README.md").read_text()
    assert rewritten(text, RESULTS, ".") == text


def test_all_results_are_shown() -> None:
    shown = re.findall(r"<!-- results: ([\w-]+) -->\n\|", (RESULTS / "README.md").read_text())
    assert shown[0] == "summary"
    assert sorted(shown[1:]) == sorted(folder.name for folder in RESULTS.glob("*") if folder.is_dir())


# ---------------------------------------------------------------------------------------------------- links
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for _, place in links_of(page):
        path, _, anchor = place.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), place
        assert not anchor or anchor in anchors_of(target), place


def test_methods_are_listed() -> None:
    rows = table_under("Methods", README)
    assert len(rows) == len(METHODS)
    for method, row in zip(METHODS.values(), rows, strict=True):
        page = page_of(method.name).relative_to(ROOT).as_posix()
        assert row[0].startswith(f"[{method.title}]({page})")
        assert f"]({method.paper})" in row[-1]


@pytest.mark.parametrize("folder", ["trainers", "trainers/federated", "hf_ext/studies", "hf_ext/benchmarks"])
def test_all_parts_of_a_folder_are_named(folder: str) -> None:
    page = (ROOT / folder / "README.md").read_text()
    parts = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    for name in {path.name + "/" * path.is_dir() for path in parts} - {"__init__.py"}:
        assert f"`{name}`" in page, name


# ---------------------------------------------------------------------------------------------------- methods
def arguments_of(method: str) -> Any:
    """The dataclass that `arguments.py` of its folder defines."""
    folder = folder_of(method).relative_to(ROOT).as_posix().replace("/", ".")
    module = importlib.import_module(f"hf_ext.{folder}.arguments")
    kinds = [kind for kind in vars(module).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
    (found,) = (kind for kind in kinds if kind.__module__ == module.__name__ and kind.__name__.endswith("Arguments"))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_listed(method: str) -> None:
    """All, in order, with their defaults (in words where it is None) and every choice that there is."""
    kind = arguments_of(method)
    rows, fields = table_under("Arguments", page_of(method)), dataclasses.fields(kind)
    assert [name for name, *_ in rows] == [f"`{field.name}`" for field in fields]
    types = typing.get_type_hints(kind)
    for (_, default, meaning), field in zip(rows, fields, strict=True):
        assert meaning
        if field.default is None:
            assert default and not default.startswith("`") and "None" not in default, field.name
        else:
            value = json.dumps(field.default) if isinstance(field.default, str) else repr(field.default)
            assert default == f"`{value}`", field.name
        for choice in choices_of(types[field.name]):
            assert f'"{choice}"' in meaning, field.name


def choices_of(kind: Any) -> list[str]:
    """Those of a Literal, or of a Literal or None."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [choice for part in typing.get_args(kind) for choice in choices_of(part)]


@pytest.mark.parametrize("method", METHODS)
def test_equations_lead_to_the_code_that_runs(method: str) -> None:
    """A function that the page links is defined in the file, and called by a class that ships."""
    linked = [(text.strip("`"), place) for text, place in links_of(page_of(method)) if re.fullmatch(r"`\w+`", text)]
    assert any("functional" in place for _, place in linked)
    linked_files = {(page_of(method).parent / place).resolve() for _, place in links_of(page_of(method))}
    folders = {folder_of(method), ROOT / "adapters" / method, ROOT / "hf_ext" / "models" / method}
    folders |= {path.parent for path in linked_files if path.suffix == ".py" and path.parent.name != "functional"}
    shipped = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    for name, place in linked:
        source = (page_of(method).parent / place).read_text()
        assert re.search(rf"^(def|class) {name}\b", source, flags=re.MULTILINE), f"{name} is not in {place}"
        if "functional" in place:
            assert f"{name}(" in shipped, f"{name} is called by nothing of {method}"


@pytest.mark.parametrize("method", METHODS)
def test_the_paper_is_cited(method: str) -> None:
    text = page_of(method).read_text()
    assert METHODS[method].bibtex in text and f"]({METHODS[method].paper})" in text


# ---------------------------------------------------------------------------------------------------- snippets
@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [
        *(str(folder_of(name).relative_to(ROOT)) for name in METHODS),
        *(
            "adapters/mola",
            "hf_ext/data",
            "hf_ext/metrics",
            "hf_ext/models/etf",
            "hf_ext/models/graph",
            "hf_ext/models/recsys",
            "trainers/federated",
        ),
    ],
)
def test_snippets_of_a_folder(folder: str, tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """In an empty folder, in the order they stand there."""
    snippets = snippets_of(ROOT / folder / "README.md")
    assert snippets
    for snippet in snippets:
        run_snippet(snippet, cwd=tmp_path)


@pytest.mark.slow
def test_snippets(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """In the order they stand there, in an empty folder."""
    snippets = snippets_of(README)
    assert len(snippets) >= 3
    for snippet in snippets:
        run_snippet(snippet, cwd=tmp_path)
    assert (tmp_path / "my_lora_for_task_2" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "my_student" / "model.safetensors").is_file()


@pytest.mark.slow
def test_template_of_a_method(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """What one writes after it trains, logs and checks its arguments."""
    (template,) = snippets_of(ROOT / ".github" / "CONTRIBUTING.md")
    *code, refused = TRAINED_TEMPLATE.strip().splitlines()
    printed = run_snippet(template + "\n".join(code), cwd=tmp_path)
    assert {"loss", "coolness", "largest_logit"} <= set(printed.split())
    with pytest.raises(AssertionError, match=r"cool_rho: found -1\.0, allowed are numbers >= 0"):
        run_snippet(template + refused, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["fer", "rd"])
def test_snippets_of_a_model_family(family: str, tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """With small models in the place of those of the Hub."""
    run_snippet(SMALL_MODELS, cwd=tmp_path)
    for name in ("facebook/convnextv2-tiny-22k-224", "microsoft/resnet-18", "facebook/dinov2-base"):
        shutil.copytree(tmp_path / "vision", tmp_path / name)
    shutil.copytree(tmp_path / "text", tmp_path / "openai" / "clip-vit-base-patch16")
    for number, name in enumerate(["happy", "neutral"]):
        for split in ("train", "test"):
            for folder in ("my_faces", "my_images"):
                place = tmp_path / folder / split / name
                place.mkdir(parents=True)
                for image in range(4):
                    Image.new("L", (20, 20), 100 * number + image).save(place / f"{image}.png")
    for snippet in snippets_of(ROOT / "hf_ext" / "models" / family / "README.md"):
        run_snippet(snippet, cwd=tmp_path)
    published, student = {"fer": ("my_matcher", "my_matcher"), "rd": ("my_rd", "my_rd/student")}[family]
    assert (tmp_path / published / "README.md").is_file()
    found = pipeline("image-classification", model=str(tmp_path / student))(Image.new("RGB", (20, 20)))
    assert {row["label"] for row in found} == {"happy", "neutral"}

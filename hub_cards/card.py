"""Model cards: facts in a dataclass, a template that words them, metadata that the Hub reads."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_ext.hub_cards.methods import METHODS, Method

RESULTS_FILE = "hf_ext_results.json"


@dataclass(frozen=True)
class Result:
    """One system's value of a metric: mean and standard deviation over seeds (`std=None` for a single run)."""

    system: str
    metric: str
    mean: float
    std: float | None = None
    seeds: int = 1
    is_method: bool = False


@dataclass
class MethodCard:
    """A model card.

    Args:
        method: a key of `METHODS`.
        model_name: title and name in the metadata.
        base_model: Hub id of the model it adapts, or None.
        dataset: name of the data, shown and put into the metadata.
        dataset_description: how they were used.
        task: Hub task, such as "image-classification".
        hyper_parameters: names and values.
        results: the table; rows with `is_method` go into the metadata (`model-index`).
        plots: file names in the folder and what they show.
        usage: Python code.
        library_name, license, limitations, command: as named; the method's own limitations are added.
    """

    method: str
    model_name: str
    base_model: str | None = None
    dataset: str = "unknown"
    dataset_description: str = ""
    task: str = "image-classification"
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    plots: Sequence[tuple[str, str]] = ()
    usage: str = ""
    library_name: str = "peft"
    license: str | None = None
    limitations: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: found {self.method!r}, allowed are {sorted(METHODS)}")

    @property
    def about(self) -> Method:
        """What is said of the method."""
        return METHODS[self.method]

    def metadata(self) -> ModelCardData:
        """The YAML header; everything in it goes through a YAML writer."""
        evaluations = [
            EvalResult(
                task_type=self.task,
                dataset_type=self.dataset,
                dataset_name=self.dataset,
                metric_type=result.metric,
                metric_value=result.mean,
                metric_name=f"{result.metric} (mean of {result.seeds} seeds)" if result.seeds > 1 else result.metric,
            )
            for result in self.results
            if result.is_method
        ]
        return ModelCardData(
            model_name=self.model_name,
            base_model=self.base_model,
            library_name=self.library_name,
            license=self.license,
            pipeline_tag=self.task,
            tags=[*self.about.tags],
            datasets=[self.dataset] if re.fullmatch(r"[\w.-]+/[\w.-]+", self.dataset) else None,
            eval_results=evaluations or None,
        )

    def render(self) -> str:
        """The card as markdown with its YAML header."""
        environment = Environment(
            loader=PackageLoader("hf_ext.hub_cards", "templates"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # the output is markdown; what users write goes through these filters
        )
        environment.filters |= {"cell": _cell, "line": _line, "code": _code}
        # user text is passed as values and never parsed as a template
        body = environment.get_template("method.md.j2").render(card=self, about=self.about)
        return f"---\n{self.metadata().to_yaml()}\n---\n\n{body}"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `README.md` into a folder, complete or not at all."""
        path = Path(folder) / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(".README.md.part")
        part.write_text(self.render(), encoding="utf-8")
        os.replace(part, path)
        return path


def create_card(folder: str | os.PathLike[str], method: str = "mola", **facts: Any) -> MethodCard:
    """Write the card of a trained folder from what lies in it; `facts` (arguments of `MethodCard`) win.

    Read are `adapter_config.json` or `config.json` (hyper-parameters, base model) and the results that a demo or an
    earlier call of this function left.
    """
    folder = Path(folder)
    found: dict[str, Any] = {"model_name": folder.resolve().name}
    for name in ("adapter_config.json", "config.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text(encoding="utf-8"))
            found["base_model"] = config.get("base_model_name_or_path")
            found["hyper_parameters"] = {key: value for key, value in config.items() if _is_worth_showing(value)}
            break
    if (folder / RESULTS_FILE).is_file():
        rows = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        found["results"] = [Result(**row) for row in rows]
    card = MethodCard(**{"method": method, **found, **facts})
    if card.base_model and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", card.base_model):
        card.base_model = None  # a path of this machine means nothing on the Hub
    card.save(folder)
    return card


def save_results(folder: str | os.PathLike[str], results: Sequence[Result]) -> None:
    """Leave results where `create_card` finds them."""
    path = Path(folder) / RESULTS_FILE
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    os.replace(part, path)


def _is_worth_showing(value: Any) -> bool:
    return value not in (None, False, "", [], {}) and not isinstance(value, dict)


def _line(value: Any) -> str:
    """One line of text that starts nothing: no headings, no lists, no HTML, no second YAML header."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text)


def _cell(value: Any) -> str:
    """Text of one table cell."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, list | tuple | set):
        value = ", ".join(str(item) for item in value)
    return _line(value) or " "


def _code(value: str) -> str:
    """A fenced block that the text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{value.rstrip()}\n{fence}"

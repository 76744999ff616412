"""Model cards: facts in a dataclass, a template that words them, metadata that the Hub reads."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_ext.hub_cards.methods import METHODS, Method

RESULTS_FILE = "hf_ext_results.json"
_CONFIGS = ("adapter_config.json", "config.json")
#: what the Hub calls a task -> what peft calls it, and the class that loads its models
_TASKS = {
    "image-classification": (None, "AutoModelForImageClassification"),
    "text-classification": ("SEQ_CLS", "AutoModelForSequenceClassification"),
    "token-classification": ("TOKEN_CLS", "AutoModelForTokenClassification"),
    "text-generation": ("CAUSAL_LM", "AutoModelForCausalLM"),
}
_NOT_SETTINGS = {"architectures", "base_model_name_or_path", "inference_mode", "peft_version", "transformers_version"}


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
        environment: training time, hardware, versions and the like.
        plots: file names in the folder and what they show.
        usage: Python code.
        library_name, license: as the Hub knows them.
        limitations: added to the method's own.
        command: what made the results.
        tags: added to the method's own.

    Raises:
        ValueError: an unknown method, or results for the metadata without a `model_name`.
    """

    method: str
    model_name: str
    base_model: str | None = None
    dataset: str = "unknown"
    dataset_description: str = ""
    task: str = "image-classification"
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    plots: Sequence[tuple[str, str]] = ()
    usage: str = ""
    library_name: str = "peft"
    license: str | None = None
    limitations: str = ""
    command: str = ""
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: found {self.method!r}, allowed are {sorted(METHODS)}")

    @property
    def about(self) -> Method:
        """What is said of the method."""
        return METHODS[self.method]

    def metadata(self) -> ModelCardData:
        """The YAML header; everything in it goes through a YAML writer."""
        own = [result for result in self.results if result.is_method]
        several = len({result.system for result in own}) > 1
        evaluations = [
            EvalResult(
                task_type=self.task,
                dataset_type=_yaml(self.dataset),
                dataset_name=_yaml(self.dataset),
                metric_type=_yaml(result.metric),
                metric_value=result.mean,
                metric_name=_yaml(_metric_name(result, with_system=several)),
            )
            for result in own
        ]
        return ModelCardData(
            model_name=_yaml(self.model_name),
            base_model=_yaml(self.base_model),
            library_name=self.library_name,
            license=_yaml(self.license),
            pipeline_tag=self.task,
            tags=list(dict.fromkeys([*self.about.tags, *map(_yaml, self.tags)])),
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
        environment.filters |= {
            "cell": _cell,
            "line": _line,
            "block": _block,
            "code": _code,
            "span": _span,
            "file": quote,
        }
        # user text is passed as values and never parsed as a template
        body = environment.get_template("method.md.j2").render(card=self, about=self.about)
        return f"---\n{self.metadata().to_yaml()}\n---\n\n{body}"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `README.md` into a folder, complete or not at all."""
        path = Path(folder) / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(".README.md.part")
        part.write_text(self.render(), encoding="utf-8", errors="replace")  # lone surrogates
        os.replace(part, path)
        return path


def create_card(folder: str | os.PathLike[str], method: str = "mola", **facts: Any) -> MethodCard:
    """Write the card of a trained folder from what lies in it; `facts` (arguments of `MethodCard`) win.

    Read are `adapter_config.json` or `config.json` (hyper-parameters, base model, task) and the results that
    `save_results` left. A base model that is a path of this machine is not named.
    """
    folder = Path(folder)
    found: dict[str, Any] = {"model_name": folder.resolve().name}
    config_file = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    if config_file is not None:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        found["base_model"] = config.get("base_model_name_or_path")
        found |= _task_facts(config.get("task_type"))
        found["hyper_parameters"] = {key: value for key, value in config.items() if _is_setting(key, value)}
    if (folder / RESULTS_FILE).is_file():
        rows = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        found["results"] = [Result(**row) for row in rows]
    card = MethodCard(**{"method": method, **found, **facts})
    if card.base_model and not _is_hub_id(card.base_model, folder):
        card.base_model = None
    if not card.usage and card.base_model:
        auto_class = _TASKS.get(card.task, (None, "AutoModel"))[1]
        card.usage = card.about.usage_of(auto_class, card.base_model, f"./{folder.resolve().name}")
    card.save(folder)
    return card


def save_results(folder: str | os.PathLike[str], results: Sequence[Result]) -> None:
    """Leave results where `create_card` finds them."""
    path = Path(folder) / RESULTS_FILE
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    os.replace(part, path)


def _task_facts(peft_task: str | None) -> dict[str, str]:
    tasks = [task for task, (name, _) in _TASKS.items() if name is not None and name == peft_task]
    return {"task": tasks[0]} if tasks else {}


def _is_setting(name: str, value: Any) -> bool:
    empty = value is None or value is False or value in ("", [])
    return not empty and not isinstance(value, dict) and name not in _NOT_SETTINGS


def _is_hub_id(name: str, folder: Path) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and not (folder / name).exists()


def _metric_name(result: Result, *, with_system: bool) -> str:
    notes = [result.system] if with_system else []
    if result.seeds > 1:
        notes.append(f"mean of {result.seeds} seeds")
    if result.std is not None:
        notes.append(f"std {result.std:.2g}")
    return f"{result.metric} ({', '.join(notes)})" if notes else result.metric


def _yaml(value: Any) -> Any:
    """Text without the one character that YAML writers and readers treat differently."""
    return value.replace("\x85", " ") if isinstance(value, str) else value


def _line(value: Any) -> str:
    """Text within a line: no markup, no HTML, no second line."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    return re.sub(r"([\\`*{}\[\]<>#|~$&]|(?<![^\W_])_)", r"\\\1", text)  # no emphasis starts within a word


def _block(value: Any) -> str:
    """Text of a paragraph of its own: as `_line`, and it starts no list and underlines no heading."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", _line(value))


def _cell(value: Any) -> str:
    """Text of one table cell."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, list | tuple | set):
        value = ", ".join(str(item) for item in value)
    return _line(value) or " "


def _code(value: str) -> str:
    """A fenced block that the text cannot end."""
    fence = _fence(value, 3)
    return f"{fence}python\n{value.rstrip()}\n{fence}"


def _span(value: str) -> str:
    """Code within a line that the text cannot end."""
    text, pad = re.sub(r"\s+", " ", value).strip(), " " if "`" in value else ""
    fence = _fence(text, 1)
    return f"{fence}{pad}{text}{pad}{fence}"


def _fence(value: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall(r"`+", value)), default=0))

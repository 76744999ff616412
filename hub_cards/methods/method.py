"""What is known of a method, and how what is named after it loads."""

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_ext.hub_cards.text import without_path

#: what a method may have a module of
Kind = Literal["commands", "studies", "benchmarks"]


@dataclass(frozen=True)
class Picture:
    """A picture of a method's own on its cards, such as MoLA's routing table.

    Args:
        file: name in the card's folder.
        caption: what it shows.
        fact: the key of `MethodCard.facts` whose value is drawn; without that fact there is no picture.
        draw: called with that value and the path to write.
    """

    file: str
    caption: str
    fact: str
    draw: Callable[[Any, str], None]


@dataclass(frozen=True)
class Snippet:
    """Code on the cards of whole models in whose folder a file lies, such as an image processor's.

    Args:
        file: in the card's folder.
        words: a line before the code (markdown).
        code: Python code that goes on from the method's `usage`, with `{auto_class}` and `{place}`.
    """

    file: str
    words: str
    code: str


#: how a model or an adapter loads that no method of ours has given a form of its own, by library
USAGES = {
    "transformers": """from transformers import {auto_class}

model = {auto_class}.from_pretrained({place}).eval()
""",
    "peft": """from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained({base})
model = PeftModel.from_pretrained(base, {place}).eval()
""",
}

#: how an image classifier of a type of ours runs
ON_IMAGES = Snippet(
    file="preprocessor_config.json",
    words="An image of yours, with the model from above or in one line:",
    code="""from PIL import Image
from transformers import AutoImageProcessor, pipeline

image = Image.open("image.png").convert("RGB")
processor = AutoImageProcessor.from_pretrained({place})
logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])

print(pipeline("image-classification", model={place}, trust_remote_code=True)(image))
""",
)


@dataclass(frozen=True)
class Method:
    """A method as its users read of it.

    Args:
        name: lower case, as on the command line.
        title: short name.
        summary: what a user gets, in one line.
        description: first lines of every card.
        equation: what it computes, in words and one formula (markdown).
        paper: address of the paper.
        bibtex: citation.
        tags: of the model on the Hub.
        limitations: what to know before relying on it (markdown).
        usage: Python code that loads what is named after the method, with `{auto_class}`, `{place}` and, for what goes
            onto a base model, `{base}`. Empty for a way to train, whose models load as ever (`USAGES`).
        further: code for what else lies in a whole model's folder.
        settings: picks those of a configuration's values that a card shows; by default all of an adapter's that say
            something, and none of a model's.
        pictures: drawn into every card's folder.
        package: where its modules are, see `module`.
    """

    name: str
    title: str
    summary: str
    description: str
    equation: str
    paper: str
    bibtex: str
    tags: tuple[str, ...]
    limitations: str
    usage: str = ""
    further: tuple[Snippet, ...] = ()
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    pictures: tuple[Picture, ...] = ()
    package: str = "hf_ext"

    def module(self, kind: Kind) -> str | None:
        """Name of the module `package.KIND.NAME`, or None if the method has none of that kind.

        - `commands`: `train(argv)` and `demo(out, ...)`, for `hf-ext train` and `hf-ext demo`
        - `studies`: `STUDIES`, for `hf-ext reproduce`
        - `benchmarks`: `BENCHMARKS`, for `hf-ext bench`
        """
        name = f"{self.package}.{kind}.{self.name}"
        try:
            return name if importlib.util.find_spec(name) is not None else None
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # something that the package needs
            return None  # not even a package of that kind

    @property
    def is_model_type(self) -> bool:
        """Whether its models are of a type of our own, which transformers knows after `import hf_ext`."""
        return bool(self.usage) and "{base}" not in self.usage


def _draw_partition(partition: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_partition

    plot_partition(partition["counts"], path, partition["clients"], partition["classes"])


#: of a federation; counts tell of clients' data, so there is no such fact unless somebody asks for it
CLIENTS_AND_CLASSES = Picture(
    file="partition.png",
    caption="How many rows of each class each client holds",
    fact="partition",
    draw=_draw_partition,
)


def name_of(config: Mapping[str, Any]) -> str:
    """What a model's configuration says it is: where its weights come from, and its architecture."""
    architecture = str(config.get("architecture") or config.get("model_type") or "unknown")
    place = config.get("_name_or_path")
    return f"{without_path(str(place))} ({architecture})" if place else architecture


def usage_of(
    usage: str,
    auto_class: str,
    place: str,
    base_model: str | None,
    base_options: Mapping[str, Any],
    base_folder: str | None,
) -> str:
    """The code that loads what lies at `place`, whatever characters are in the names.

    Empty if it goes onto a base model of which neither the Hub id nor the folder within `place` is known.
    """
    base = None
    if base_model:
        base = ", ".join([_quoted(base_model), *(f"{name}={value!r}" for name, value in base_options.items())])
    if base is None and base_folder:
        # where the adapter's own configuration is looked for too, in place of the folder above that has one
        subfolder = _quoted(base_folder)
        base = f'{_quoted(place)}, subfolder={subfolder}, adapter_kwargs={{"subfolder": {subfolder}}}'
    if base is None and "{base}" in usage:
        return ""
    return usage.format(auto_class=auto_class, place=_quoted(place), base=base)


def _quoted(name: str) -> str:
    """A Python literal, in double quotes where that takes no thought."""
    return f'"{name}"' if re.fullmatch(r"[\w./-]*", name) else repr(name)

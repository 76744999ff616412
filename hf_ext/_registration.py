"""All that `import hf_ext` does to the process, as soon as peft or transformers is imported; it imports neither.

- The tables that these libraries have for further types get ours: `ADAPTERS` and `MODELS`.
- `REPLACEMENTS` are the only methods and functions of other libraries that are replaced.
- `sys.meta_path` gets a finder at its front, which waits for these imports (`_import_hooks`) and finds nothing itself.
"""

import functools
import importlib
import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from hf_ext._import_hooks import Action, after_import

_AUTO = "transformers.models.auto"
_REPLACED = "_hf_ext_replaced"


class ModelEntry(NamedTuple):
    """A model type for transformers' Auto classes.

    Args:
        package: where it lives, in `configuration_NAME.py` and `modeling_NAME.py`, with NAME the package's last part.
        config: name of the configuration class.
        models: names of the model classes by the Auto class that shall find them.
    """

    package: str
    config: str
    models: Mapping[str, str]

    def module(self, kind: str) -> str:
        return f"{self.package}.{kind}_{self.package.rpartition('.')[2]}"


class Replacement(NamedTuple):
    """A method or function of another library that is replaced for the whole process, for want of a hook.

    Args:
        library: whose import makes it.
        owner: module and class, "peft.peft_model:PeftModel", or the module of a function.
        method: the name.
        by: module and function of ours; called with the original, it gives the method in its place, which calls it.
        reason: what it is for.
        until: what the library has to offer for it to go.
    """

    library: str
    owner: str
    method: str
    by: str
    reason: str
    until: str


#: packages of our adapter types, which register themselves when they are imported
ADAPTERS = ("hf_ext.adapters.mola",)

_WHOLE = "a MoLA adapter is loaded whole or not at all: its file is checked, and the model is unchanged if that fails"
_UNTIL_CHECKED = "peft looks at a file before it changes the model, and undoes what fails; no release up to 0.21 does"

REPLACEMENTS = (
    Replacement(
        library="peft",
        owner="peft.config:PeftConfigMixin",
        method="from_json_file",
        by="hf_ext.adapters.mola.safety:checked_json",
        reason="a broken adapter_config.json, or one of a type that nobody knows, is said to be that, with its path",
        until="peft says which file it cannot read, and what an unknown peft_type may be; no release up to 0.21 does",
    ),
    Replacement(
        library="peft",
        owner="peft.config:PeftConfigMixin",
        method="from_pretrained",
        by="hf_ext.adapters.mola.safety:recording_source",
        reason="a MoLA configuration knows the folder or repo that it comes from, so that the weights there are "
        "checked before layers of their size are made, and folders without it and paths of a base model are refused",
        until="PeftConfig.from_pretrained tells the class of the configuration where it was read, and not only what "
        "the file holds; no release up to peft 0.21 does",
    ),
    Replacement(
        library="peft",
        owner="peft.peft_model:PeftModel",
        method="create_or_update_model_card",
        by="hf_ext.hub_cards._peft:sparing_our_cards",
        reason="saving an adapter leaves a card of ours as it is, which peft would write tags and a local path into",
        until="PeftModel.save_pretrained can be told to write no card; no release up to peft 0.21 can",
    ),
    Replacement(
        library="peft",
        owner="peft.peft_model:PeftModel",
        method="from_pretrained",
        by="hf_ext.adapters.mola.loading:peft_from_pretrained",
        reason=_WHOLE,
        until=_UNTIL_CHECKED,
    ),
    Replacement(
        library="peft",
        owner="peft.peft_model:PeftModel",
        method="load_adapter",
        by="hf_ext.adapters.mola.loading:peft_load_adapter",
        reason=_WHOLE,
        until=_UNTIL_CHECKED,
    ),
    Replacement(
        library="peft",
        owner="transformers.integrations.peft:PeftAdapterMixin",
        method="load_adapter",
        by="hf_ext.adapters.mola.loading:transformers_load_adapter",
        reason=_WHOLE,
        until=_UNTIL_CHECKED,
    ),
    Replacement(
        library="peft",
        owner="peft.peft_model:PeftModel",
        method="save_pretrained",
        by="hf_ext.adapters.mola.loading:peft_save_pretrained",
        reason="safe_serialization=False is refused for a MoLA adapter, of which no pickle is ever read",
        until="peft asks the tuner before it writes a pickle, or writes none; no release up to peft 0.21 does",
    ),
    Replacement(
        library="peft",
        owner="peft.tuners.tuners_utils:BaseTuner",
        method="__init__",
        by="hf_ext.adapters.mola.checks:without_mola",
        reason="LoRA and others are refused on a model with MoLA before it is touched, as MoLA is on theirs: a file "
        "of the one adapter does not say that it is of use with the other alone",
        until="a tuner layer can refuse to be wrapped by tuners of other types; in no release up to peft 0.21 it can",
    ),
    *(
        Replacement(
            library="peft",
            owner=module,
            method="get_layer_status",
            by="hf_ext.adapters.mola.status:adapted_layers_only",
            reason="the module that routes belongs to an adapter, yet is no layer that was adapted",
            until="get_layer_status asks the tuner which its layers are; no release up to peft 0.21 does",
        )
        for module in ("peft.peft_model", "peft")
    ),
)

#: our entries by model type
MODELS: dict[str, ModelEntry] = {
    "etf": ModelEntry(
        package="hf_ext.models.etf",
        config="ETFConfig",
        models={
            "AutoModelForImageClassification": "ETFForImageClassification",
            "AutoModelForSequenceClassification": "ETFForSequenceClassification",
        },
    ),
    "fer": ModelEntry(
        package="hf_ext.models.fer",
        config="FERConfig",
        models={"AutoModel": "FERModel", "AutoModelForImageClassification": "FERForImageClassification"},
    ),
    "graph_pu": ModelEntry(
        package="hf_ext.models.graph",
        config="GraphPUConfig",
        models={"AutoModel": "GraphPUModel"},
    ),
    "rd": ModelEntry(
        package="hf_ext.models.rd",
        config="RDConfig",
        models={"AutoModel": "RDModel", "AutoModelForImageClassification": "RDForImageClassification"},
    ),
    "sequential_recommender": ModelEntry(
        package="hf_ext.models.recsys",
        config="SequentialRecommenderConfig",
        models={"AutoModel": "SequentialRecommenderForNextItem"},
    ),
}


def install(
    adapters: Iterable[str] = ADAPTERS,
    models: Mapping[str, ModelEntry] = MODELS,
    replacements: Iterable[Replacement] = REPLACEMENTS,
) -> None:
    """Registers adapters and models and replaces methods; repeating it is harmless.

    Models wait for the import of transformers' Auto modules, the others for that of peft, unless they are imported.
    """
    for package in adapters:
        _import_after("peft", package)
    for replacement in replacements:
        ours = replacement.by.partition(":")[0]
        _run_after(ours, functools.partial(_replace, replacement))
        _import_after(replacement.library, ours)
    for model_type, entry in models.items():
        _install_model(model_type, entry)


def _replace(replacement: Replacement, module: ModuleType) -> None:
    """Puts our method in place; of a reloaded module the newer one, around the same original."""
    place, _, name = replacement.owner.partition(":")
    owner = importlib.import_module(place)
    if name:
        owner = getattr(owner, name)
    current = vars(owner)[replacement.method]
    bound_to_class = isinstance(current, classmethod)
    function = current.__func__ if bound_to_class else current
    marked: tuple[Any, Any] = getattr(function, _REPLACED, (None, None))
    ours, original = marked
    if ours is not function:  # the library's own, or somebody else's around ours
        original = function
    make = getattr(module, replacement.by.partition(":")[2])
    new = functools.wraps(original)(make(original))
    setattr(new, _REPLACED, (new, original))
    setattr(owner, replacement.method, classmethod(new) if bound_to_class else new)


def _install_model(model_type: str, entry: ModelEntry) -> None:
    """Registers the classes when their own module is complete, whoever imported it: it may itself import Auto's."""
    configuration, modeling = entry.module("configuration"), entry.module("modeling")

    def register_config(module: ModuleType) -> None:
        auto = importlib.import_module(f"{_AUTO}.configuration_auto")
        auto.AutoConfig.register(model_type, getattr(module, entry.config))

    def register_models(module: ModuleType) -> None:
        auto = importlib.import_module(f"{_AUTO}.modeling_auto")
        config = getattr(importlib.import_module(configuration), entry.config)
        for auto_class, model in entry.models.items():
            getattr(auto, auto_class).register(config, getattr(module, model))

    _run_after(configuration, register_config)
    _run_after(modeling, register_models)
    _import_after(f"{_AUTO}.configuration_auto", configuration)
    _import_after(f"{_AUTO}.modeling_auto", modeling)


def _import_after(library: str, module: str) -> None:
    _run_after(library, lambda _: importlib.import_module(module))


def _run_after(module: str, action: Action) -> None:
    """Runs `action` when `module` has been imported. Its failure must not break that import, so it is a warning."""

    def run(imported: ModuleType) -> None:
        try:
            action(imported)
        except Exception as error:
            warnings.warn(f"hf_ext could not register itself after the import of {module}: {error}", stacklevel=2)

    after_import(module, run)

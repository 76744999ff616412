"""Registration with peft and transformers as soon as either is imported, so that `import hf_ext` imports neither."""

import importlib
import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import NamedTuple

from hf_ext._import_hooks import Action, after_import

_AUTO = "transformers.models.auto"


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


#: modules that tell peft something when they are imported: of an adapter type, of cards that are not its own
ADAPTERS = ("hf_ext.adapters.mola", "hf_ext.hub_cards._peft")

#: our entries by model type
MODELS: dict[str, ModelEntry] = {
    "fer": ModelEntry(
        package="hf_ext.models.fer",
        config="FERConfig",
        models={"AutoModel": "FERModel", "AutoModelForImageClassification": "FERForImageClassification"},
    ),
    "rd": ModelEntry(
        package="hf_ext.models.rd",
        config="RDConfig",
        models={"AutoModel": "RDModel", "AutoModelForImageClassification": "RDForImageClassification"},
    ),
}


def install(adapters: Iterable[str] = ADAPTERS, models: Mapping[str, ModelEntry] = MODELS) -> None:
    """Registers the adapters once peft is imported, the models once transformers' Auto modules are, or at once."""
    for package in adapters:
        _import_after("peft", package)
    for model_type, entry in models.items():
        _install_model(model_type, entry)


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

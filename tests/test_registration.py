"""peft and transformers know our types after `import hf_ext`, in any order of imports."""

import ast
import copy
import functools
import importlib
import os
import pickle
import subprocess
import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from hf_ext import MoLAConfig, MoLAModel, _versions
from hf_ext._registration import REPLACEMENTS, Replacement, _replace
from hf_ext.adapters._register import HfExtPeftType, register_adapter

ROOT = Path(__file__).resolve().parents[1]
TOYS = Path(__file__).resolve().parent / "toys"


def run(code: str, *args: object) -> str:
    """Run `code` in a process of its own that can import the toys; it has nothing to say but what it prints."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TOYS), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, "-W", "error:hf_ext:UserWarning", "-c", code, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "could not register" not in done.stderr, done.stderr
    return done.stdout


ADAPTER_IS_KNOWN = """
import peft
assert peft.PEFT_TYPE_TO_CONFIG_MAPPING["MOLA"].__name__ == "MoLAConfig"
assert [key.value for key in peft.PEFT_TYPE_TO_CONFIG_MAPPING].count("MOLA") == 1
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import peft, hf_ext",
        "import hf_ext.adapters.mola",
        "import hf_ext, importlib; importlib.reload(hf_ext); importlib.reload(hf_ext)",
    ],
)
def test_adapter_is_known_in_every_order(imports: str) -> None:
    run(imports + "\n" + ADAPTER_IS_KNOWN)


@pytest.mark.parametrize(
    "imports",
    [
        "from hf_ext.models import FERProcessor",
        "import hf_ext; from transformers import ResNetForImageClassification",
        "import hf_ext.studies.rd",
    ],
)
def test_models_are_known_whatever_comes_first(imports: str) -> None:
    run(f"""
{imports}
from transformers import AutoConfig, AutoModelForImageClassification
for name in ("fer", "rd"):
    assert type(AutoConfig.for_model(name)) in AutoModelForImageClassification._model_mapping
""")


def test_reimport_replaces_the_classes() -> None:
    run("""
import sys
import hf_ext, peft
old = hf_ext.MoLAConfig
for name in [name for name in sys.modules if name.startswith("hf_ext")]:
    del sys.modules[name]
import hf_ext
assert hf_ext.MoLAConfig is not old
assert peft.PEFT_TYPE_TO_CONFIG_MAPPING["MOLA"] is hf_ext.MoLAConfig
""")


# ------------------------------------------------------------------------------------------------ replaced methods
def _key(replacement: Replacement) -> tuple[str, str, str]:
    """Module, class and method, or module and function."""
    place, _, name = replacement.owner.partition(":")
    return (place, name, replacement.method) if name else (place, replacement.method, "")


LISTED = {_key(replacement) for replacement in REPLACEMENTS}

SNAPSHOT = """
import importlib, inspect, sys
from pathlib import Path
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "safetensors", "torch", "transformers")
USED = ("trainer", "modeling_utils", "configuration_utils", "modelcard", "models.auto.modeling_auto")

def snapshot():
    found = {}  # every attribute of every module and class of the libraries that is there
    for name in USED:
        importlib.import_module(f"transformers.{name}")
    for place, module in list(sys.modules.items()):
        if place.partition(".")[0] in LIBRARIES:
            for name, value in list(vars(module).items()):
                found[place, name, ""] = value
                if isinstance(value, type) and value.__module__ == place:
                    found |= {(place, name, method): inner for method, inner in vars(value).items()}
    return found

def use_everything():
    import hf_ext.adapters, hf_ext.commands.cli, hf_ext.data, hf_ext.hub_cards, hf_ext.models, hf_ext.trainers
    for package in (hf_ext.adapters, hf_ext.data, hf_ext.hub_cards, hf_ext.models, hf_ext.trainers):
        for name in dir(package):
            getattr(package, name)
"""


def test_nothing_is_replaced_that_is_not_listed() -> None:
    """Compared are more than 100 000 attributes; one that is imported lazily meanwhile is new, and not replaced."""
    found = run(
        SNAPSHOT
        + """
import peft
import torch_geometric.data, torch_geometric.nn, torch_geometric.transforms  # which replace functions of torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
get_checkpoint_conversion_mapping("bert")  # the register of all that is kept is made when it is first asked
before, finders = snapshot(), list(sys.meta_path)
assert len(before) > 100_000
use_everything()
after = snapshot()
print({key for key in before if after.get(key) is not before[key]})
added = [finder for finder in sys.meta_path if finder not in finders]
assert [type(finder).__module__ for finder in added] == ["hf_ext._import_hooks"]
"""
    )
    assert ast.literal_eval(found) == LISTED


def test_what_is_listed_is_replaced_whatever_comes_first() -> None:
    found = run(
        SNAPSHOT
        + """
use_everything()
ours = {str(Path(sys.argv[1], folder)) for folder in ("adapters", "hf_ext", "hub_cards", "trainers")}
def is_ours(value):
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    return inspect.isfunction(function) and any(function.__code__.co_filename.startswith(folder) for folder in ours)
print({key for key, value in snapshot().items() if is_ours(value)})
""",
        ROOT,
    )
    assert ast.literal_eval(found) == LISTED


def test_a_replacement_says_why_and_until_when() -> None:
    for replacement in REPLACEMENTS:
        assert replacement.reason and replacement.until
        place, _, name = replacement.owner.partition(":")
        module = importlib.import_module(place)
        method = getattr(getattr(module, name) if name else module, replacement.method)
        original = method.__wrapped__
        assert (method.__name__, method.__doc__) == (original.__name__, original.__doc__)


class Owner:
    """Of another library."""

    def method(self) -> str:
        return "original"

    @classmethod
    def of_class(cls) -> str:
        return f"original of {cls.__name__}"


def test_replacing_again_replaces_the_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(version: str) -> ModuleType:
        module = ModuleType("ours")
        module.make = lambda original: lambda self: f"{version} of {original(self)}"  # type: ignore[attr-defined]
        return module

    for method in ("method", "of_class"):
        monkeypatch.setattr(Owner, method, vars(Owner)[method])  # put back at the end
        replacement = Replacement("ours", f"{__name__}:Owner", method, "ours:make", "a test", "its end")
        for version in ("first", "second"):
            _replace(replacement, make(version))
    assert Owner().method() == "second of original"
    assert Owner.of_class() == "second of original of Owner"


def test_replacing_again_keeps_what_others_have_put_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Owner, "method", vars(Owner)["method"])
    ours = ModuleType("ours")
    ours.make = lambda original: lambda self: f"ours of {original(self)}"  # type: ignore[attr-defined]
    replacement = Replacement("ours", f"{__name__}:Owner", "method", "ours:make", "a test", "its end")
    _replace(replacement, ours)
    before: Any = Owner.method
    monkeypatch.setattr(Owner, "method", functools.wraps(before)(lambda self: f"theirs of {before(self)}"))
    _replace(replacement, ours)
    assert "theirs of ours of original" in Owner().method()


def test_reimported_replacements_are_for_the_new_classes(tmp_path: Path) -> None:
    run(
        """
import sys
import hf_ext, peft
for name in [name for name in sys.modules if name.startswith("hf_ext")]:
    del sys.modules[name]
import hf_ext
hf_ext.MoLAConfig(target_modules=["0"], num_experts=2).save_pretrained(sys.argv[1])
assert peft.PeftConfig.from_pretrained(sys.argv[1])._read_from.name == sys.argv[1]
""",
        tmp_path,
    )


# ------------------------------------------------------------------------------------------------ models
MODEL_IS_KNOWN = """
from transformers import AutoConfig, AutoModel
assert type(AutoModel.from_config(AutoConfig.for_model("hf-ext-toy"))).__name__ == "ToyModel"
"""
INSTALL_MODEL = """
from hf_ext._registration import ModelEntry, install
install(models={"hf-ext-toy": ModelEntry("toy", "ToyConfig", {"AutoModel": "ToyModel"})})
"""


@pytest.mark.parametrize(
    "imports",
    [
        INSTALL_MODEL * 2,
        "from transformers import AutoModel" + INSTALL_MODEL,
        INSTALL_MODEL + "import toy.modeling_toy",
    ],
)
def test_model_is_known_in_every_order(imports: str) -> None:
    run(imports + "\n" + MODEL_IS_KNOWN)


def test_installing_a_model_imports_nothing() -> None:
    run(INSTALL_MODEL + "import sys; assert 'torch' not in sys.modules; assert 'toy' not in sys.modules")


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_ext; from transformers import AutoModel",
        "from transformers import AutoModel; import hf_ext",
        "import hf_ext.models.rd.modeling_rd",
        "from hf_ext import RDModel",
        "import hf_ext; from transformers import Trainer",
        "import hf_ext; from transformers import PreTrainedModel",
        "from hf_ext.trainers import DISAMTrainer",
    ],
)
def test_our_models_are_known_in_every_order(imports: str) -> None:
    run(f"""
{imports}
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
config = AutoConfig.for_model("rd", teacher_width=4)
for auto, name in ((AutoModel, "RDModel"), (AutoModelForImageClassification, "RDForImageClassification")):
    assert type(auto.from_config(config)).__name__ == name
""")


def test_toy_adapter_round_trip_in_a_new_process(tmp_path: Path) -> None:
    start = """
import sys, torch, hf_ext
from hf_ext._registration import install
install(adapters=["toy_adapter"])
from peft import PeftModel, get_peft_model
base, x = torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.ones(1, 3)
torch.nn.init.ones_(base[0].weight), torch.nn.init.zeros_(base[0].bias)
"""
    save = """
import toy_adapter
model = get_peft_model(base, toy_adapter.ToyConfig(target_modules=["0"]))
with torch.no_grad():
    model.base_model.model[0].toy_factor["default"].fill_(5)
model.save_pretrained(sys.argv[1])
print(model(x).tolist())
"""
    load = "print(PeftModel.from_pretrained(base, sys.argv[1], adapter_name='other')(x).tolist())"
    assert run(start + save, tmp_path) == run(start + load, tmp_path) == "[[15.0, 15.0]]\n"


def test_registering_again_is_harmless() -> None:
    before = [dict(table) for table in _tables()]
    register_adapter(HfExtPeftType.MOLA, MoLAConfig, MoLAModel, MoLAModel.prefix)
    assert [dict(table) for table in _tables()] == before


def test_taken_type_is_refused() -> None:
    class LORA(StrEnum):
        LORA = "LORA"

    before = [dict(table) for table in _tables()]
    with pytest.raises(ValueError, match=r"LORA of .*MoLAConfig already belongs to peft\.tuners\.lora.*LoraConfig"):
        register_adapter(LORA.LORA, MoLAConfig, MoLAModel, "other_")
    assert [dict(table) for table in _tables()] == before


def test_taken_prefix_is_refused() -> None:
    class New(StrEnum):
        NEW = "NEW"

    with pytest.raises(ValueError, match="'lora_' for the PEFT type NEW, but it belongs to"):
        register_adapter(New.NEW, MoLAConfig, MoLAModel, "lora_")
    assert not any("NEW" in table for table in _tables())


def _tables() -> tuple[dict, dict, dict]:
    return PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING


def test_type_survives_copies_and_reads_as_its_string() -> None:
    kind = HfExtPeftType.MOLA
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert copy.deepcopy(kind) is kind
    assert kind == "MOLA" == kind.value
    config = MoLAConfig(target_modules=["0"], num_experts=2)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["peft<0.22,>=0.21", "timm>=1.0; extra == 'vision'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)


@pytest.mark.parametrize("found", ["0.20.0", "0.22.0", "1.0", "0.22.0.dev0"])
def test_unsupported_version_is_refused(requirements: None, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: found)
    with pytest.raises(
        ImportError, match=rf"peft <0\.22,>=0\.21, found peft {found}: pip install 'peft<0\.22,>=0\.21'"
    ):
        _versions.require_supported("peft")


@pytest.mark.parametrize("found", ["0.21.0", "0.21.9", "0.21.3.dev0"])
def test_supported_version_is_accepted(requirements: None, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: found)
    _versions.require_supported("peft", "timm")


def test_checkout_without_metadata_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    _versions.require_supported("peft")


def test_installed_versions_are_supported() -> None:
    _versions.require_supported("peft", "transformers")


def test_unsupported_peft_still_imports() -> None:
    run("""
import warnings
from importlib import metadata
metadata.requires = lambda name: ["peft>=99"]
import hf_ext
with warnings.catch_warnings(record=True, action="always") as caught:
    import peft
assert any("peft >=99, found peft" in str(warning.message) for warning in caught), caught
assert "MOLA" not in peft.PEFT_TYPE_TO_CONFIG_MAPPING
try:
    import hf_ext.adapters.mola
except ImportError as error:
    assert "pip install 'peft>=99'" in str(error)
else:
    raise AssertionError("imported")
""")


def test_missing_extra_names_the_command() -> None:
    assert _versions.require_extra("peft", "test") is peft
    with pytest.raises(ImportError, match=r"no_such_module is not installed: pip install 'hf-ext\[vision\]'"):
        _versions.require_extra("no_such_module", "vision")

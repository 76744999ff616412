"""Who runs the equations: every public function is one that shipped code executes, or a thin wrapper of such a one.

Read from the sources alone. A function is executed if code outside of `hf_ext.functional` uses it in training,
inference or evaluation (comparisons and benchmarks do not count), or if an executed function of the package calls it.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONAL = ROOT / "hf_ext" / "functional"
#: what shipped code runs besides comparisons
SHIPPED = [
    path
    for folder in ("hf_ext", "trainers", "adapters", "hub_cards")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if FUNCTIONAL not in path.parents and not {"benchmarks", "studies"} & set(path.relative_to(ROOT).parts)
]

#: public functions that nothing shipped executes, for callers who have other inputs or want less of the output;
#: and the executed function that each calls
WRAPPERS = {
    "disam_sample_weights": "domain_variance_weights",
    "divbs_select": "divbs_select_with_info",
    "divbs_select_gram": "_greedy_gram",
    "domain_mean_losses": "_sums_of_present",
    "front_door_effect": "FrontDoorSum",
    "linear_cka": "_cka",
    "rd_losses": "rd_losses_of_logits",
    "representation_gravity": "loss_gravity",
    "tarf_loss": "tarf_objective",
}

#: what a library does in our place, by the rule that the library's own code runs where there is one; that both are the
#: same is tested there
LIBRARIES = {"weighted_average": "tests/trainers/federated/fedgela/test_strategy.py"}  # Flower's FedAvg


def _names_used(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _names_called(tree: ast.AST) -> set[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {function.id for function in calls if isinstance(function, ast.Name)}


def _definitions() -> dict[str, set[str]]:
    """Functions and classes of the package, private ones too, and the names that each calls."""
    return {
        node.name: _names_called(node)
        for path in FUNCTIONAL.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def _public() -> list[str]:
    """Functions and classes in the `__all__` of the package's files."""
    listed: list[str] = []
    for path in FUNCTIONAL.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed += ast.literal_eval(node.value)
    return sorted(listed)


def _used_by(source: str) -> set[str]:
    """Functions that a module imports from the package and uses."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[:2] == ["hf_ext", "functional"]
        for alias in node.names
    }
    return {imported[name] for name in imported.keys() & _names_used(tree)}


DEFINITIONS = _definitions()
PUBLIC = [name for name in _public() if name in DEFINITIONS]


@pytest.fixture(scope="module")
def executed() -> set[str]:
    new = {name for path in SHIPPED for name in _used_by(path.read_text(encoding="utf-8"))} & DEFINITIONS.keys()
    reached: set[str] = set()
    while new:
        reached |= new
        new = {name for caller in new for name in DEFINITIONS[caller]} & DEFINITIONS.keys() - reached
    return reached


def test_everything_public_is_looked_at() -> None:
    assert len(PUBLIC) > 40
    assert set(_public()) - set(PUBLIC) == {"IGNORED_LABEL"}  # the rest has a definition


@pytest.mark.parametrize("name", PUBLIC)
def test_shipped_code_runs_it(name: str, executed: set[str]) -> None:
    if name in LIBRARIES:
        assert name not in executed, "ours runs"
        assert _used_by((ROOT / LIBRARIES[name]).read_text(encoding="utf-8")) == {name}
        return
    if name not in WRAPPERS:
        assert name in executed
        return
    assert name not in executed, "no longer a wrapper only"
    assert WRAPPERS[name] in DEFINITIONS[name] & executed


def test_wrappers_are_public() -> None:
    assert WRAPPERS.keys() <= set(PUBLIC)


def test_an_import_alone_is_no_use() -> None:
    assert _used_by("from hf_ext.functional import twd_loss") == set()
    assert _used_by("from hf_ext.functional.mola import twd_loss as loss\nloss(1, 2)") == {"twd_loss"}
    assert _used_by("from elsewhere import twd_loss\ntwd_loss(1, 2)") == set()

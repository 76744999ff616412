"""The versions of other packages that work here. Their only source is pyproject.toml, read from our metadata."""

import importlib
from importlib import metadata
from types import ModuleType

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_DISTRIBUTION = "hf-ext"


def require_supported(*packages: str) -> None:
    """Checks that the installed versions of `packages` are within our requirements.

    A source checkout that was never installed has no metadata and is not checked.

    Raises:
        ImportError: names the package, the version found, the versions allowed and the pip command.
    """
    allowed = _requirements()
    for package in packages:
        version = metadata.version(package)
        if package in allowed and not allowed[package].contains(version, prereleases=True):
            versions = allowed[package]
            raise ImportError(
                f"hf_ext works with {package} {versions}, found {package} {version}: pip install '{package}{versions}'"
            )


def require_extra(module: str, extra: str) -> ModuleType:
    """Imports `module`, which comes with the optional dependencies `extra`.

    Raises:
        ImportError: names the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{module} is not installed: pip install '{_DISTRIBUTION}[{extra}]'") from error


def _requirements() -> dict[str, SpecifierSet]:
    """The allowed versions by package, without the optional dependencies."""
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {r.name: r.specifier for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}

"""The one registry of methods, read by cards, README and command line."""

import importlib

from hf_ext.hub_cards.methods.method import USAGES, Kind, Method, Picture, Snippet, usage_of

__all__ = ["METHODS", "USAGES", "Kind", "Method", "Picture", "Snippet", "register_method", "usage_of"]

#: our methods, in the order of lists and help texts; each has a file here, with its `METHOD`
_OURS = ("mola", "disam", "divbs", "tarf", "fer", "rd", "fedlesam", "fedgela", "causald", "gpl")

#: the methods by name
METHODS: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Make a method known to cards and commands.

    Raises:
        ValueError: another method has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"name: found {method.name!r}, which is taken, allowed is one that is not in METHODS")
    return method


for _name in _OURS:
    register_method(importlib.import_module(f"{__name__}.{_name}").METHOD)

"""The one registry of methods, read by cards, README and command line."""

from hf_ext.hub_cards.methods.disam import DISAM
from hf_ext.hub_cards.methods.divbs import DIVBS
from hf_ext.hub_cards.methods.fer import FER
from hf_ext.hub_cards.methods.method import USAGES, Method, Picture, Snippet, usage_of
from hf_ext.hub_cards.methods.mola import MOLA
from hf_ext.hub_cards.methods.rd import RD
from hf_ext.hub_cards.methods.tarf import TARF

__all__ = ["METHODS", "USAGES", "Method", "Picture", "Snippet", "register_method", "usage_of"]

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


for _method in (MOLA, DISAM, DIVBS, TARF, FER, RD):
    register_method(_method)

"""TARF's studies: on pictures, and on facts that a language model has learned."""

from hf_ext.studies.tarf.study import STUDIES

__all__ = ["STUDIES"]

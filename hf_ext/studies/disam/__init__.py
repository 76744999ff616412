"""DISAM's studies: on domains that were left out, and what the variance does to the convergence."""

from hf_ext.studies.disam.study import STUDIES

__all__ = ["STUDIES"]

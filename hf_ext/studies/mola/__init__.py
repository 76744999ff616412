"""MoLA's studies: against its baselines, and what the TwD loss does."""

from hf_ext.studies.mola.study import STUDIES

__all__ = ["STUDIES"]

"""GPL's study: known positives in graphs whose neighbours are alike, and in such whose are not."""

from hf_ext.studies.gpl.study import STUDIES

__all__ = ["STUDIES"]

"""DivBS's studies: accuracy at a budget, what BatchNorm costs, time to an accuracy, with cheaper scores too."""

from hf_ext.studies.divbs.study import STUDIES

__all__ = ["STUDIES"]

"""FedGELA's studies: clients that lack classes; the fixed simplex head on long-tailed data, without a federation."""

from hf_ext.studies.fedgela.long_tail import LONG_TAIL
from hf_ext.studies.fedgela.study import COMPARISON

STUDIES = (COMPARISON, LONG_TAIL)

__all__ = ["STUDIES"]

"""FedGELA's studies: the fixed simplex head on long-tailed data, without a federation."""

from hf_ext.studies.fedgela.long_tail import LONG_TAIL

STUDIES = (LONG_TAIL,)

__all__ = ["STUDIES"]

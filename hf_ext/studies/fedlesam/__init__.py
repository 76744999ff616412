"""FedLESAM's studies, and the federations that they and FedGELA's are run on."""

from hf_ext.studies.fedlesam.study import STUDIES

__all__ = ["STUDIES"]

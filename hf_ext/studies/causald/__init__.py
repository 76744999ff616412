"""CausalD's study: a student of many teachers, in shops whose true effects are known and on logs."""

from hf_ext.studies.causald.study import STUDIES

__all__ = ["STUDIES"]

"""RD's study: a student beside a teacher, next to other ways to learn from one."""

from hf_ext.studies.rd.study import STUDIES

__all__ = ["STUDIES"]

"""FER's study on features of faces and on digits; `tuned` makes one with a backbone that is fine-tuned."""

from hf_ext.studies.fer.study import STUDIES

__all__ = ["STUDIES"]

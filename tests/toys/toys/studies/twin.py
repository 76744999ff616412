"""The studies of another method, of the same names."""

from toys.studies.toy import STUDIES as STUDIES

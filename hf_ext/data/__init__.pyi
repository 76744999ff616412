from .collators import KeepColumns as KeepColumns
from .digits import digits as digits
from .facts import facts as facts
from .loading import EMBEDDED as EMBEDDED
from .loading import load as load
from .mismatch import MismatchSplit as MismatchSplit
from .mismatch import mismatch_split as mismatch_split

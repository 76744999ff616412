from .collators import KeepColumns as KeepColumns
from .digits import digits as digits
from .loading import EMBEDDED as EMBEDDED
from .loading import load as load

from .etf import *
from .fer import *
from .rd import *
from .recsys import *

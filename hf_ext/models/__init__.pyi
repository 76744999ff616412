from .etf import *
from .fer import *
from .graph import *
from .rd import *
from .recsys import *

from .fer import *
from .rd import *

from . import federated as federated
from .base import MethodMixin as MethodMixin
from .causald import *
from .disam import *
from .divbs import *
from .fer import *
from .gpl import *
from .mola import *
from .rd import *
from .tarf import *

from .clients import client_app as client_app
from .fedgela import *
from .fedlesam import *
from .guard import GuardedMixin as GuardedMixin
from .guard import guarded as guarded
from .rounds import Contribution as Contribution
from .rounds import FederatedMixin as FederatedMixin
from .rounds import Round as Round
from .servers import server_app as server_app
from .simulation import simulate as simulate

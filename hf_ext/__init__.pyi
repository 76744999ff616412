from . import adapters as adapters
from . import data as data
from . import functional as functional
from . import hub_cards as hub_cards
from . import metrics as metrics
from . import models as models
from . import trainers as trainers
from .adapters import *
from .hub_cards import CardCallback as CardCallback
from .hub_cards import MethodCard as MethodCard
from .hub_cards import create_card as create_card
from .hub_cards import push_folder as push_folder
from .models import *
from .trainers import *

__version__: str

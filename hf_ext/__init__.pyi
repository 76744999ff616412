from . import adapters as adapters
from . import data as data
from . import functional as functional
from . import hub_cards as hub_cards
from . import metrics as metrics
from . import trainers as trainers
from .adapters import MoLAConfig as MoLAConfig
from .adapters import MoLAModel as MoLAModel
from .hub_cards import CardCallback as CardCallback
from .hub_cards import MethodCard as MethodCard
from .hub_cards import create_card as create_card
from .hub_cards import push_folder as push_folder
from .trainers import MethodMixin as MethodMixin
from .trainers import MoLAArguments as MoLAArguments
from .trainers import MoLAMixin as MoLAMixin
from .trainers import MoLATrainer as MoLATrainer
from .trainers import MoLATrainingConfig as MoLATrainingConfig
from .trainers import TARFArguments as TARFArguments
from .trainers import TARFConfig as TARFConfig
from .trainers import TARFMixin as TARFMixin
from .trainers import TARFTrainer as TARFTrainer

__version__: str

from . import adapters as adapters
from . import data as data
from . import functional as functional
from . import hub_cards as hub_cards
from . import trainers as trainers
from .adapters import MoLAConfig as MoLAConfig
from .adapters import MoLAModel as MoLAModel
from .hub_cards import CardCallback as CardCallback
from .hub_cards import MethodCard as MethodCard
from .hub_cards import create_card as create_card
from .hub_cards import push_folder as push_folder
from .trainers import DISAMArguments as DISAMArguments
from .trainers import DISAMConfig as DISAMConfig
from .trainers import DISAMMixin as DISAMMixin
from .trainers import DISAMTrainer as DISAMTrainer
from .trainers import DivBSArguments as DivBSArguments
from .trainers import DivBSConfig as DivBSConfig
from .trainers import DivBSMixin as DivBSMixin
from .trainers import DivBSTrainer as DivBSTrainer
from .trainers import MethodMixin as MethodMixin
from .trainers import MoLAArguments as MoLAArguments
from .trainers import MoLAMixin as MoLAMixin
from .trainers import MoLATrainer as MoLATrainer
from .trainers import MoLATrainingConfig as MoLATrainingConfig

__version__: str

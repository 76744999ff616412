from .arguments import FERArguments as FERArguments
from .trainer import FERMixin as FERMixin
from .trainer import FERTrainer as FERTrainer
from .trainer import FERTrainingConfig as FERTrainingConfig

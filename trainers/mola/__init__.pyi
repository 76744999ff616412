from .arguments import MoLAArguments as MoLAArguments
from .trainer import MoLAMixin as MoLAMixin
from .trainer import MoLATrainer as MoLATrainer
from .trainer import MoLATrainingConfig as MoLATrainingConfig

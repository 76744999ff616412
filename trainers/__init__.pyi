from .base import MethodMixin as MethodMixin
from .mola import MoLAArguments as MoLAArguments
from .mola import MoLAMixin as MoLAMixin
from .mola import MoLATrainer as MoLATrainer
from .mola import MoLATrainingConfig as MoLATrainingConfig

from .arguments import DISAMArguments as DISAMArguments
from .trainer import DISAMConfig as DISAMConfig
from .trainer import DISAMMixin as DISAMMixin
from .trainer import DISAMTrainer as DISAMTrainer

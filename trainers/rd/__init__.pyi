from .arguments import RDArguments as RDArguments
from .trainer import RDMixin as RDMixin
from .trainer import RDTrainer as RDTrainer
from .trainer import RDTrainingConfig as RDTrainingConfig

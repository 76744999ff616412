from .arguments import DivBSArguments as DivBSArguments
from .trainer import DivBSConfig as DivBSConfig
from .trainer import DivBSMixin as DivBSMixin
from .trainer import DivBSTrainer as DivBSTrainer

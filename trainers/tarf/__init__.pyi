from .arguments import TARFArguments as TARFArguments
from .trainer import TARFConfig as TARFConfig
from .trainer import TARFMixin as TARFMixin
from .trainer import TARFTrainer as TARFTrainer

from .arguments import FedGELAArguments as FedGELAArguments
from .strategy import FedGELA as FedGELA
from .trainer import FedGELAConfig as FedGELAConfig
from .trainer import FedGELAMixin as FedGELAMixin
from .trainer import FedGELATrainer as FedGELATrainer

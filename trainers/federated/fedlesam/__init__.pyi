from .arguments import FedLESAMArguments as FedLESAMArguments
from .strategy import FedLESAM as FedLESAM
from .trainer import FedLESAMConfig as FedLESAMConfig
from .trainer import FedLESAMMixin as FedLESAMMixin
from .trainer import FedLESAMTrainer as FedLESAMTrainer

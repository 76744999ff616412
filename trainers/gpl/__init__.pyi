from .arguments import GPLArguments as GPLArguments
from .results import load_edge_weights as load_edge_weights
from .trainer import GPLConfig as GPLConfig
from .trainer import GPLMixin as GPLMixin
from .trainer import GPLTrainer as GPLTrainer

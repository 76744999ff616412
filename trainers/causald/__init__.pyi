from .arguments import CausalDArguments as CausalDArguments
from .candidates import CandidateRows as CandidateRows
from .trainer import CausalDConfig as CausalDConfig
from .trainer import CausalDMixin as CausalDMixin
from .trainer import CausalDTrainer as CausalDTrainer

from .attacks import learned_attack as learned_attack
from .attacks import threshold_attack as threshold_attack
from .forgetting import UNLEARNING_METRIC as UNLEARNING_METRIC
from .forgetting import gap as gap
from .forgetting import unlearning_metrics as unlearning_metrics

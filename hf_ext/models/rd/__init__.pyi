from .configuration_rd import RDConfig as RDConfig
from .modeling_rd import RDForImageClassification as RDForImageClassification
from .modeling_rd import RDModel as RDModel

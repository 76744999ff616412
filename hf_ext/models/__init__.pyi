from .rd.configuration_rd import RDConfig as RDConfig
from .rd.modeling_rd import RDForImageClassification as RDForImageClassification
from .rd.modeling_rd import RDModel as RDModel

from .mola import MoLAConfig as MoLAConfig
from .mola import MoLAModel as MoLAModel

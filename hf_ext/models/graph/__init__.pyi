from .configuration_graph import GraphPUConfig as GraphPUConfig
from .modeling_graph import GraphPUModel as GraphPUModel

from .configuration_fer import FERConfig as FERConfig
from .modeling_fer import FERForImageClassification as FERForImageClassification
from .modeling_fer import FERModel as FERModel
from .modeling_fer import FEROutput as FEROutput
from .processing_fer import FERProcessor as FERProcessor

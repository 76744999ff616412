from .fer import FERConfig as FERConfig
from .fer import FERForImageClassification as FERForImageClassification
from .fer import FERModel as FERModel
from .fer import FERProcessor as FERProcessor
from .rd import RDConfig as RDConfig
from .rd import RDForImageClassification as RDForImageClassification
from .rd import RDModel as RDModel

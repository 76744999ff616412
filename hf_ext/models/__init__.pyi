from .fer import FERConfig as FERConfig
from .fer import FERForImageClassification as FERForImageClassification
from .fer import FERModel as FERModel
from .fer import FERProcessor as FERProcessor

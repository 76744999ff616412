from .classifier_etf import ETFClassifier as ETFClassifier
from .configuration_etf import ETFConfig as ETFConfig
from .modeling_etf import ETFForImageClassification as ETFForImageClassification
from .modeling_etf import ETFForSequenceClassification as ETFForSequenceClassification
from .replacing import replace_classifier as replace_classifier

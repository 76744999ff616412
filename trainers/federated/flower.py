"""The names of Flower that this package stands on."""

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg, Result, Strategy
    from flwr.simulation import run_simulation
    from flwr.supercore.logger import FLOWER_LOGGER
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    raise ImportError(f"federated training needs Flower: pip install 'hf-ext[federated]' ({error})") from error

__all__ = [
    "FLOWER_LOGGER",
    "SUPERLINK_NODE_ID",
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "ErrorCode",
    "FedAvg",
    "Grid",
    "Message",
    "Metadata",
    "MetricRecord",
    "RecordDict",
    "Result",
    "ServerApp",
    "Strategy",
    "TaskIdentity",
    "run_simulation",
]

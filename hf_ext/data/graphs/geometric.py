"""The classes of PyTorch Geometric that are used here, or an error that says how to install it."""

from hf_ext._versions import require_extra

require_extra("torch_geometric", "graph")

from torch_geometric.data import Data as Data  # noqa: E402
from torch_geometric.data import HeteroData as HeteroData  # noqa: E402
from torch_geometric.transforms import BaseTransform as BaseTransform  # noqa: E402

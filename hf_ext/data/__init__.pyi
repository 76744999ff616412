from . import graphs as graphs
from .collators import KeepColumns as KeepColumns
from .digits import digits as digits
from .facts import facts as facts
from .interactions import *
from .loading import EMBEDDED as EMBEDDED
from .loading import load as load
from .mismatch import MismatchSplit as MismatchSplit
from .mismatch import mismatch_split as mismatch_split
from .partition import Partition as Partition
from .partition import counts_table as counts_table
from .partitioners import classes_partition as classes_partition
from .partitioners import dirichlet_partition as dirichlet_partition
from .partitioners import iid_partition as iid_partition
from .partitioners import natural_partition as natural_partition

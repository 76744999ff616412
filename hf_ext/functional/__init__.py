"""The papers' equations as pure functions on tensors. This package imports torch and nothing else.

One file per method, which opens with a map from the paper's symbols and equations to arguments and functions; its
`__all__` says what is public. Every function computes in at least float32 and differentiates where its method does.
"""

# ruff: noqa: F403 (a star stands for the `__all__` of a file, so that a name is written there and nowhere else)

from hf_ext.functional.causald import *
from hf_ext.functional.disam import *
from hf_ext.functional.divbs import *
from hf_ext.functional.fedgela import *
from hf_ext.functional.fedlesam import *
from hf_ext.functional.fer import *
from hf_ext.functional.gpl import *
from hf_ext.functional.losses import *
from hf_ext.functional.mola import *
from hf_ext.functional.positive_unlabeled import *
from hf_ext.functional.ranking import *
from hf_ext.functional.rd import *
from hf_ext.functional.tarf import *

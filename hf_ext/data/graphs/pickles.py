"""Pickles of arrays, and of nothing else: to read other ones is to run what their writer wanted."""

import copyreg
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

_ARRAY, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
#: what a pickle may name, by the modules that hold it or once did
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ARRAY for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"scipy.sparse.{file}", "csr_matrix"): scipy.sparse.csr_matrix for file in ("csr", "_csr")},
    ("collections", "defaultdict"): defaultdict,
    **{(module, "_reconstructor"): copyreg._reconstructor for module in ("copy_reg", "copyreg")},  # type: ignore[attr-defined]
    **{(module, kind.__name__): kind for module in ("__builtin__", "builtins") for kind in (object, list, dict, int)},
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, in pickles for Python 2
}


def read_pickle(path: Path) -> Any:
    """An array, a sparse matrix or a dict of lists of integers that Python 2 or 3 has pickled.

    Sparse matrices come back as dense arrays.

    Raises:
        ValueError: a pickle that is broken or names anything but arrays, sparse matrices and plain containers.
    """
    try:
        with path.open("rb") as file:
            found = _Arrays(file, encoding="latin1").load()
        return _dense(found) if scipy.sparse.issparse(found) else found
    except Exception as error:  # a pickle can make its reader raise anything
        raise ValueError(
            f"name: found {str(path)!r}, which cannot be read ({error}), allowed are pickled arrays, sparse matrices "
            "and dicts"
        ) from error


def _dense(found: Any) -> Any:
    """A sparse matrix as an array. What was unpickled may have other methods than its class."""
    matrix = scipy.sparse.csr_matrix((found.data, found.indices, found.indptr), shape=found.shape)
    matrix.check_format(full_check=True)  # the loops behind toarray write wherever the indices point to
    return matrix.toarray()


class _Arrays(pickle.Unpickler):
    """Unpickles what `_ALLOWED` says."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]

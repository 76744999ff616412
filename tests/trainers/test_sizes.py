"""Sizes that something would be made of before anybody could see that there is no room for it."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_ext.trainers import DivBSArguments, DivBSConfig, DivBSTrainer, TARFConfig, TARFTrainer


def test_forget_batches(tmp_path: Path, vit: Any, data: Dataset) -> None:
    def make(size: int, **options: Any) -> TARFTrainer:
        args = TARFConfig(output_dir=str(tmp_path), use_cpu=True, tarf_forget_batch_size=size, **options)
        return TARFTrainer(vit(), args, train_dataset=data, forget_dataset=list(range(10)))

    with pytest.raises(ValueError, match=f"tarf_forget_batch_size: found {10**9} with 10 rows to forget, .* 1 to 10"):
        make(10**9)
    make(10)
    make(16, per_device_train_batch_size=16)  # rows come several times, as by default


def test_candidates(tmp_path: Path, vit: Any, data: Dataset) -> None:
    args = DivBSConfig(output_dir=str(tmp_path), use_cpu=True, divbs_ratio=1e-12)
    with pytest.raises(ValueError, match="divbs_ratio: found 1e-12, with batches of 8000000000000 candidates"):
        DivBSTrainer(vit(), args, train_dataset=data)
    with pytest.raises(ValueError, match=f"divbs_sketch_dim: found {10**9}"):
        DivBSArguments(divbs_sketch_dim=10**9)

"""Rows that two processes hand each other: each gets its own of the chosen ones, of every kind of column."""

from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "exchange.py"
SIZES = [3, 5]
CHOSEN = torch.tensor([7, 0, 4, 2, 3])


@pytest.mark.slow
def test_each_process_gets_its_own_rows(run_script: Any, tmp_path: Path) -> None:
    options = {"sizes": SIZES, "chosen": CHOSEN.tolist(), "file": str(tmp_path / "found")}
    run_script(SCRIPT, options, processes=2)
    found = [torch.load(tmp_path / f"found-{rank}", weights_only=False) for rank in (0, 1)]
    labels, halves = found[0][0]
    assert found[1][0] is None and labels.tolist() == list(range(8)) and halves[7, 1, 2] == 3.5
    for rank, (_, kept, alone, errors) in enumerate(found):
        rows = CHOSEN[rank::2]
        for first, batch in kept.items():
            assert torch.equal(batch["labels"], rows) and torch.equal(batch["flags"], rows % 2 == 0)
            assert batch["halves"].dtype == torch.bfloat16
            assert torch.equal(batch["halves"], (rows / 2).bfloat16()[:, None, None].expand(-1, 2, 3))
            for ids, row in zip(batch["input_ids"].tolist(), rows.tolist(), strict=True):
                short = [9, row, row] if first else [row, row, 9]
                assert ids == (short if row < SIZES[0] else [row] * 3)
            assert batch["words"] == [f"row {row}" * row for row in rows.tolist()]
            assert torch.equal(batch["nested"]["more"], rows.double())
            assert batch["nested"]["names"] == [None] * len(rows) and batch["scalar"] == 1.5
        assert alone == (["row 6" * 6] if rank == 0 else [])
        assert "divbs_selection_scope: found 'global' with batches of" in errors[0]
        assert errors[1] == "labels: found shape (2,) in a batch of 5 samples, allowed is a row for each"
    assert found[0][3] == found[1][3]

"""FER's study with a backbone of the user's: how it learns, every system runs; also by the script."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_ext.data import load
from hf_ext.studies import Preparation, Run
from hf_ext.studies.backbones import options_of
from hf_ext.studies.fer import tuned as study
from hf_ext.studies.fer.data import TEXTS

SCRIPT = Path(__file__).parents[3] / "examples" / "fer_tuned.py"


@pytest.fixture
def faces(tmp_path: Path) -> str:
    """70 grey images, of 12 x 12 pixels, of seven classes."""
    rng = np.random.default_rng(0)
    rows = {
        "image": [Picture.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)) for _ in range(70)],
        "label": [row % 7 for row in range(70)],
        "split": ["test" if row >= 56 else "train" for row in range(70)],
    }
    features = Features(image=Image(), label=ClassLabel(names=list(TEXTS["faces"])), split=Value("string"))
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "faces.parquet")
    return str(tmp_path / "faces.parquet")


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path / "backbone")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_other_expressions_and_sizes_are_refused(faces: str, tmp_path: Path) -> None:
    study.check("faces", load(faces))
    wrong = load(faces)
    wrong["train"] = wrong["train"].cast_column("label", ClassLabel(names=list("abcdefg")))
    with pytest.raises(ValueError, match="--data: found the classes a, b"):
        study.check("faces", wrong)
    first, *others = Dataset.from_parquet(faces)
    larger = Dataset.from_list([{**first, "image": Picture.new("L", (12, 14))}, *others])
    larger.cast_column("label", ClassLabel(names=list(TEXTS["faces"]))).to_parquet(tmp_path / "larger.parquet")
    with pytest.raises(
        ValueError, match="--data: found images of 12 x 12, 12 x 14 pixels in faces, allowed is one size"
    ):
        study.prepare(Preparation("faces", 0, str(tmp_path / "larger.parquet"), tmp_path))


@pytest.mark.parametrize("system", study.tuned("x").systems, ids=lambda system: system.name)
def test_the_backbone_has_a_rate_of_its_own(
    system: study.System, faces: str, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate of zero it stays; all else learns, and every weight is in one group."""
    groups = []
    made = study.fer._two_rates

    def watched(*args: object) -> torch.optim.AdamW:
        optimizer = made(*args)  # type: ignore[arg-type]
        groups.append([[(weight, weight.clone()) for weight in group["params"]] for group in optimizer.param_groups])
        return optimizer

    monkeypatch.setattr(study.fer, "_two_rates", watched)
    (tmp_path / "prepared").mkdir()
    study.prepare(Preparation("faces", 0, faces, tmp_path / "prepared"))
    case = study.tuned(str(backbone)).cases[1]
    rates = {"learning_rate": 1e-2, "backbone_rate": 0.0, **({"logit_scale": 20.0} if system.options else {})}
    outcome = study.run(Run(case, system, rates, 0, faces, tmp_path / "prepared", quick=True))
    assert 0 <= outcome.test <= 1
    tuned, new = groups[0]
    assert len({id(weight) for weight, _ in tuned + new}) == len(tuned + new)
    assert all(torch.equal(weight, before) for weight, before in tuned)
    assert any(not torch.equal(weight, before) for weight, before in new)


def test_the_weights_name_the_runs(backbone: Path) -> None:
    assert study.tuned(str(backbone)).cases[0].options.items() >= options_of(str(backbone)).items()


@pytest.mark.slow
def test_the_script(faces: str, backbone: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--backbone", str(backbone), "--data", faces, "--out", str(tmp_path)]
    done = subprocess.run([*command, "--quick", "--seeds", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = (tmp_path / "quick" / "fer-tuned" / "report.md").read_text()
    assert "python examples/fer_tuned.py --backbone backbone --data faces=faces.parquet --seeds 1 --quick" in report

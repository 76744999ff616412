"""FER's study with any pretrained vision backbone of transformers, which is fine-tuned.

    python examples/fer_tuned.py --backbone BACKBONE --data faces.parquet

`faces.parquet` has the columns image, label (class labels: angry, disgust, fear, happy, sad, surprise, neutral) and
split (train, test).
"""

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from hf_ext.studies import reproduce
from hf_ext.studies.fer.tuned import tuned
from hf_ext.studies.identity import shown
from hf_ext.studies.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description="FER's study with a backbone that is fine-tuned.")
    parser.add_argument("--backbone", required=True, help="a Hub id, or the folder of a model")
    parser.add_argument("--data", required=True, help="the table of faces: a file, a folder or a Hub id")
    parser.add_argument("--out", default="examples/results", help="results go to OUT/fer-tuned")
    parser.add_argument("--seeds", type=int, help="repetitions")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--quick", action="store_true", help="only show that everything works")
    given = parser.parse_args()
    study, out = tuned(given.backbone), Path(given.out) / ("quick" if given.quick else "") / "fer-tuned"
    words = ["python", "examples/fer_tuned.py", "--backbone", shown(given.backbone), "--data", shown(given.data)]
    words += ["--seeds", str(given.seeds)] if given.seeds is not None else []
    result = reproduce(
        study,
        out=out,
        data={"faces": given.data},
        seeds=given.seeds,
        quick=given.quick,
        jobs=given.jobs,
        console=Console(),
        command=shlex.join(words),
    )
    print(write_report(study, result, out))


if __name__ == "__main__":
    main()

"""FER's study with any pretrained vision backbone of transformers, which is fine-tuned.

    python examples/fer_tuned.py --backbone BACKBONE --data faces=faces.parquet

`faces.parquet` has the columns image, label (class labels: angry, disgust, fear, happy, sad, surprise, neutral) and
split (train, test).
"""

from hf_ext.commands.tuned import run_study, study_parser
from hf_ext.studies.fer.tuned import tuned


def main() -> None:
    parser = study_parser(
        "FER's study with a backbone that is fine-tuned.", "faces=PATH_OR_HUB_ID, the table of faces"
    )
    given = parser.parse_args()
    run_study(given, tuned(given.backbone), __file__)


if __name__ == "__main__":
    main()

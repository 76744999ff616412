"""DISAM's study with any pretrained vision backbone of transformers, which is fine-tuned, whole and by LoRA.

    python examples/disam_tuned.py --backbone BACKBONE --data pictures=pacs.parquet --leave-out sketch

`pacs.parquet` has the columns image (all of one size), label, domain (class labels) and split (train, test).
"""

from hf_ext.commands.tuned import run_study, study_parser
from hf_ext.studies.disam.tuned import LEFT_OUT, tuned


def main() -> None:
    parser = study_parser(
        "DISAM's study with a backbone that is fine-tuned.",
        "pictures=PATH_OR_HUB_ID, the table of pictures in domains",
    )
    parser.add_argument("--leave-out", default=LEFT_OUT, help="the domain that is not trained on")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that comes with the backbone: read it first"
    )
    given = parser.parse_args()
    study = tuned(given.backbone, left_out=given.leave_out, trust_remote_code=given.trust_remote_code)
    run_study(given, study, __file__)


if __name__ == "__main__":
    main()

"""FER, as cards, README and command line know it."""

from collections.abc import Mapping
from typing import Any

from hf_ext.hub_cards.methods.method import ON_IMAGES, Method, Picture, name_of


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "fer":
        return {}
    shown = {"vision_model": name_of(config["vision_config"])} if config.get("vision_config") else {}
    names = ("class_prompts", "text_model", "neutral_id", "logit_scale", "learn_logit_scale", "projection")
    shown |= {name: config[name] for name in names if config.get(name) is not None}
    return shown | losses_shown(config, config.get("neutral_id"))


def losses_shown(settings: Mapping[str, Any], neutral_id: int | None) -> dict[str, Any]:
    """Which losses there are, and those of the settings that they heed."""
    names = ["lambda_s"] if neutral_id is None else ["contrast_pairs", "lambda_s", "lambda_t", "lambda_c"]
    off = {"losses": "the cross-entropy alone: without a neutral class the other two are off"}
    return (off if neutral_id is None else {}) | {name: settings[name] for name in names if name in settings}


def _draw_texts(texts: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_similarities

    plot_similarities(texts, path)


METHOD = Method(
    name="fer",
    title="FER matcher",
    summary="a model family that matches faces to text embeddings of expressions; trained by any Trainer",
    description=(
        "Knowledge-enhanced facial expression recognition (Li et al., IEEE Transactions on Multimedia 2025): a face "
        "is classified by the text whose embedding is nearest. A small network learns what a face would be like "
        "without its expression, guided by the difference of the texts."
    ),
    equation=(
        "With features f of a face, n of its neutral transformation and T_c of the texts, and u(v) = v / ||v||:\n\n"
        "`logits_c = s u(f) . u(T_c)`\n\n"
        "Beside the cross-entropy of the logits, over all faces that are not neutral, "
        "`1 - cos(f - n, T_y - T_neutral)` aligns the transformation with the texts, and "
        "`2 - u(T_y) . u(f) + u(T_y) . u(n)` pulls faces to their texts and keeps their neutral versions away; "
        "without a neutral class these two are off. At inference only the logits remain."
    ),
    paper="https://arxiv.org/abs/2409.08598",
    bibtex="""@article{li2025ke2nt,
  title   = {Knowledge-Enhanced Facial Expression Recognition With Emotional-to-Neutral Transformation},
  author  = {Li, Hangyu and Xu, Yihan and Yao, Jiangchao and Wang, Nannan and Gao, Xinbo and Han, Bo},
  journal = {IEEE Transactions on Multimedia},
  year    = {2025},
  note    = {arXiv:2409.08598}
}""",
    tags=("hf_ext", "fer", "facial-expression-recognition"),
    limitations=(
        "An expression is not an emotion: what a face shows says little about what a person feels, and differs "
        "between cultures and data sets, whose labels are noisy. Faces are personal data. Accuracy differs between "
        "groups of people: measure it on those that the model is meant for, or do not use it on people."
    ),
    usage="""import hf_ext  # or pass trust_remote_code=True, without it
from transformers import {auto_class}

model = {auto_class}.from_pretrained({place}).eval()
""",
    further=(ON_IMAGES,),
    settings=_settings,
    pictures=(
        Picture(
            file="texts.png",
            caption="How alike the classes' texts are",
            fact="texts",
            draw=_draw_texts,
        ),
    ),
)

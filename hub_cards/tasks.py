"""Which Auto class loads a model, and what the Hub calls the model's task."""

from typing import Any

from hf_ext._models import base_model

#: Auto class -> what the Hub calls the task and what peft calls it. Where several classes hold a model, or do a task,
#: it is the first: Bart's for text to text also fills masks.
TASKS: dict[str, tuple[str | None, str | None]] = {
    "AutoModelForImageClassification": ("image-classification", None),
    "AutoModelForSequenceClassification": ("text-classification", "SEQ_CLS"),
    "AutoModelForTokenClassification": ("token-classification", "TOKEN_CLS"),
    "AutoModelForCausalLM": ("text-generation", "CAUSAL_LM"),
    "AutoModelForSeq2SeqLM": ("text2text-generation", "SEQ_2_SEQ_LM"),
    "AutoModelForQuestionAnswering": ("question-answering", "QUESTION_ANS"),
    "AutoModelForTableQuestionAnswering": ("table-question-answering", None),
    "AutoModelForVisualQuestionAnswering": ("visual-question-answering", None),
    "AutoModelForDocumentQuestionAnswering": ("document-question-answering", None),
    "AutoModelForMultipleChoice": ("multiple-choice", None),
    "AutoModelForMaskedLM": ("fill-mask", None),
    "AutoModelForAudioClassification": ("audio-classification", None),
    "AutoModelForSpeechSeq2Seq": ("automatic-speech-recognition", None),
    "AutoModelForCTC": ("automatic-speech-recognition", None),
    "AutoModelForVideoClassification": ("video-classification", None),
    "AutoModelForZeroShotImageClassification": ("zero-shot-image-classification", None),
    "AutoModelForObjectDetection": ("object-detection", None),
    "AutoModelForZeroShotObjectDetection": ("zero-shot-object-detection", None),
    "AutoModelForSemanticSegmentation": ("image-segmentation", None),
    "AutoModelForInstanceSegmentation": ("image-segmentation", None),
    "AutoModelForUniversalSegmentation": ("image-segmentation", None),
    "AutoModelForImageSegmentation": ("image-segmentation", None),
    "AutoModelForDepthEstimation": ("depth-estimation", None),
    "AutoModelForImageTextToText": ("image-text-to-text", None),
    "AutoModel": (None, "FEATURE_EXTRACTION"),
}


def auto_class_for(task: str | None) -> str:
    """The Auto class of a task of the Hub; `AutoModel` for an unknown one."""
    return next((auto_class for auto_class, (name, _) in TASKS.items() if name and name == task), "AutoModel")


def auto_class_of(peft_task: str | None, model_class: str | None) -> str | None:
    """The Auto class of an adapter's `task_type` or else of a model's class, registered ones too; None if unknown."""
    if peft_task:
        return next((auto_class for auto_class, (_, name) in TASKS.items() if name == peft_task), None)
    if not model_class:
        return None
    from transformers.models.auto import modeling_auto

    for auto_class in TASKS:
        mapping = getattr(modeling_auto, auto_class)._model_mapping
        names = [*mapping._model_mapping.values(), *(model.__name__ for model in mapping._extra_content.values())]
        if any(model_class in (name if isinstance(name, tuple) else (name,)) for name in names):
            return auto_class
    return None


def base_options(model: Any) -> dict[str, Any]:
    """What `from_pretrained` must be told to make a base with the head of this model, adapted or not.

    The base model's own head may have been for other classes.
    """
    base = base_model(model)
    task, _ = TASKS.get(auto_class_of(None, type(base).__name__) or "", (None, None))
    if not (task or "").endswith("-classification"):
        return {}
    return {"num_labels": base.config.num_labels, "ignore_mismatched_sizes": True}

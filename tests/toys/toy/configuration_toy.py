from transformers import PreTrainedConfig


class ToyConfig(PreTrainedConfig):
    model_type = "hf-ext-toy"

"""A metric for `evaluate.load(hf_ext.metrics.UNLEARNING_METRIC)`."""

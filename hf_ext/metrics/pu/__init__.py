"""A metric for `evaluate.load(hf_ext.metrics.PU_METRIC)`."""

"""A metric for `evaluate.load(hf_ext.metrics.RANKING_METRIC)`."""

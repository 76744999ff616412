"""A model type as transformers lays one out."""

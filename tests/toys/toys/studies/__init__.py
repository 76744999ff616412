"""The toy method's studies."""

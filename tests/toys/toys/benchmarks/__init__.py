"""The toy method's benchmarks."""

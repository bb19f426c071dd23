"""What people would otherwise train or run, for benchmarks alone."""

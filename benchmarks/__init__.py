"""Speed and memory of Holdfast beside its peers and the machine's own limits: `python -m benchmarks`."""

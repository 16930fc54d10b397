"""Three papers reproduced: their networks, their data, their claims. ``python -m benchmarks.papers --help``."""

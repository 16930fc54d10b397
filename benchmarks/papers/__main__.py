"""``python -m benchmarks.papers queue|mpo|adtn|stp``."""

from benchmarks.papers.cli import main

main()

"""``python -m benchmarks.papers mpo|adtn|stp``."""

from benchmarks.papers.cli import main

main()

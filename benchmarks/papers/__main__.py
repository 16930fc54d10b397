"""``python -m benchmarks.papers``."""

import sys

from benchmarks.papers.queue import main

main(sys.argv[1:])

"""This tree against another commit, timed in turn: `make compare BASE=<commit>`."""

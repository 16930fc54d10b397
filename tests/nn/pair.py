"""Two processes that train together, watched: what they say is kept, and neither outlives a failure or its time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 180
"""Time for both to end: ten times what they take beside two busy cores."""


def free_port() -> int:
    """A port that nobody listens at, below those that the system hands out to whoever asks for any."""
    for k in range(200):
        port = 20000 + (os.getpid() * 7 + time.time_ns() // 1000 + k * 101) % 12000
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 20000 and 32000")


def run_pair(script: Path, *arguments: str, **env: str) -> list[tuple[int, str]]:
    """Run a script twice with what torchrun and `accelerate launch` set; exit status and output of each.

    Raises
    ------
    AssertionError
        They did not end in `SECONDS`.
    """
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    files = [script.with_suffix(f".{rank}.txt") for rank in (0, 1)]
    jobs = []
    try:
        for rank, file in enumerate(files):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with file.open("w") as out:  # a file takes all they say; a pipe that nobody reads fills up and stops them
                command = [sys.executable, str(script), *arguments]
                everything = os.environ | shared | own | env
                jobs.append(subprocess.Popen(command, env=everything, stdout=out, stderr=subprocess.STDOUT))
        end = time.monotonic() + SECONDS
        try:
            for job in jobs:
                job.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            said = "\n".join(file.read_text() for file in files)
            raise AssertionError(f"the two processes did not end in {SECONDS} s; they said:\n{said}") from None
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    return [(job.returncode, file.read_text()) for job, file in zip(jobs, files, strict=True)]

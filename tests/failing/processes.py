"""Processes of a test: found wherever they went, and ended."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

MARK = "TEST_LAUNCH"
"""Every process of a launch inherits this variable of the environment."""


def alive(mark: str) -> list[int]:
    """The processes that a launch left, children of children too."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                running = wanted in (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                # It ended meanwhile, or is somebody else's.
                continue
            if running:
                found.append(int(folder.name))
    return found


def left_after(mark: str, seconds: float) -> list[int]:
    """The same, once they had some time to go."""
    end = time.monotonic() + seconds
    while (found := alive(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def end(mark: str) -> None:
    """Kills what is left."""
    for process in alive(mark):
        os.kill(process, signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port

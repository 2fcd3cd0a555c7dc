"""Waiting for processes that are not one's own children."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def wait_for_ends(processes: Iterable[psutil.Process], seconds: float = 60) -> list[psutil.Process]:
    """Wait for the ends of processes; returns those that still run after so many seconds.

    One whose parent is gone may keep its number for a second after its end, until the system's first process notes it;
    psutil's own waits count that second.
    """
    deadline = time.monotonic() + seconds
    running = [process for process in processes if runs(process)]
    while running and time.monotonic() < deadline:
        time.sleep(0.02)
        running = [process for process in running if runs(process)]
    return running


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""SIGTERM, with which Ray, Kubernetes and Slurm stop a job."""

from __future__ import annotations

import signal
import threading


def interrupt_on_terminate() -> None:
    """Have SIGTERM do what Ctrl-C does: actors are ended and the run is marked as interrupted."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)

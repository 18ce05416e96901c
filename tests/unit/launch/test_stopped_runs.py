"""A run that is stopped from outside: what it holds is given back, and its folder says so."""

import json
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import asyncio, sys
from launch import cli
from launch.run_folder import run_folder
from launch.signals import interrupt_on_terminate
from rlhf_ray.config.supervised import SftConfig

config = SftConfig.model_validate({
    "run_dir": sys.argv[1], "data": {"path": "x"}, "policy": {"model": {"path": "a/b"}},
})

async def hold():
    try:
        print("held", flush=True)
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.1)
        print("given back", flush=True)

def run():
    interrupt_on_terminate()
    with run_folder(config):
        asyncio.run(hold())
    return 0

sys.exit(cli.guarded(run))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_in_order(sent, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without a terminal has its background jobs ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "held\n"
    time.sleep(0.2)
    run.send_signal(sent)
    said, errors = run.communicate(timeout=30)
    assert (run.returncode, said, errors) == (130, "given back\n", "interrupted\n")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"

"""What code in the sandbox cannot do. Each attack is real: it succeeds where a protection lacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.sandbox import inside
from rlhf_ray.sandbox import run as run_module
from rlhf_ray.sandbox.limits import Limits
from rlhf_ray.sandbox.run import SandboxRefused, run_python

# A busy machine takes seconds for what takes a tenth.
ROOMY = Limits(wall_s=60.0, cpu_s=30)


async def test_code_runs_with_files_input_and_packages():
    code = "import numpy, sys; print(int(numpy.sum([1, 2])), input(), open('a/b.txt').read())"
    outcome = await run_python(code, stdin="in\n", files={"a/b.txt": "held"}, limits=ROOMY)
    assert (outcome.stdout, outcome.stderr) == ("3 in held\n", "")
    assert outcome.is_success
    failed = await run_python("raise SystemExit(3)", limits=ROOMY)
    assert (failed.ending, failed.status, failed.is_success) == ("exit", 3, False)


PRINT_PREFIX = """
import asyncio, sys
from rlhf_ray.sandbox.run import run_python
code = "import os, sys; print(sys.prefix, os.path.exists(os.path.join(sys.prefix, '../secret')))"
outcome = asyncio.run(run_python(code))
sys.exit(outcome.stderr if outcome.stdout != sys.prefix + " False\\n" else 0)
"""


@pytest.mark.parametrize("linked", ["environment", "base", "program"])
def test_python_may_be_there_by_links(tmp_path, linked):
    """As where a folder of environments was moved, or a tool names interpreters by links."""
    tmp_path.chmod(0o755)  # code there is another user's
    folder = tmp_path / "python"
    if linked == "environment":
        folder.symlink_to(sys.prefix)
        python = folder / "bin/python"
    elif linked == "program":  # by a link beside what is the user's
        (tmp_path / "secret").write_text("of the user")
        (tmp_path / "python3").symlink_to(Path(sys.executable).resolve())
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin/python"
        python.symlink_to(tmp_path / "python3")
        home = Path(sys.executable).resolve().parent
        (folder / "pyvenv.cfg").write_text(f"home = {home}\n")
    else:
        folder.symlink_to(sys.base_prefix)
        python = tmp_path / "bin/python"
        python.parent.mkdir()
        python.symlink_to(folder / "bin" / Path(sys.executable).resolve().name)
        (tmp_path / "pyvenv.cfg").write_text(f"home = {folder}/bin\n")
    path = os.pathsep.join(sys.path)  # of this project and what it needs
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([python, "-c", PRINT_PREFIX], check=True, env=environment, timeout=120)


FORK_BOMB = """
import os, time
num = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        num += 1
except BlockingIOError:
    print(num)
"""
ENDLESS_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def named(mark: str) -> list[str]:
    """Processes of the machine that call themselves so, as all of a run do behind `names`."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/comm").read_text().strip() == mark:
                found.append(process)
    return found


def names(mark: str) -> str:
    return f"open('/proc/self/comm', 'w').write({mark!r})\n"


async def test_a_fork_bomb_is_held_to_its_processes_and_leaves_none():
    outcome = await run_python(FORK_BOMB, limits=Limits(wall_s=60, processes=16))
    assert outcome.stdout == "15\n"  # and the code itself
    mark = f"bomb{os.getpid()}"
    limits = Limits(wall_s=5, processes=16)
    running = asyncio.ensure_future(run_python(names(mark) + ENDLESS_BOMB, limits=limits))
    while len(named(mark)) < 8:
        assert not running.done()
        await asyncio.sleep(0.01)
    assert (await running).ending == "timeout"
    assert not named(mark), "none is left"


async def test_memory_is_limited_for_one_process_and_for_all_together():
    one = await run_python("x = bytearray(10 * 2**30); print('got it')", limits=ROOMY)
    assert "MemoryError" in one.stderr and "got it" not in one.stdout
    code = (
        "import os, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        x = b'x' * 2**26; time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    together = await run_python(code, limits=Limits(wall_s=60, memory_mb=256))
    assert together.ending == "memory"


async def test_an_endless_loop_ends_by_its_limits():
    started_s = time.monotonic()
    waits = await run_python("import time; time.sleep(600)", limits=Limits(wall_s=1))
    assert waits.ending == "timeout"
    works = await run_python("while True: pass", limits=Limits(wall_s=120, cpu_s=1))
    assert works.ending == "signal"
    assert time.monotonic() - started_s < 90


async def test_nothing_is_written_outside_or_read_of_the_users(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the user's")
    places = [str(secret), "/usr/lib/x", "/etc/x", "/root/x", "/dev/null/../x", str(Path.home())]
    code = (
        "import os\n"
        f"for place in {places!r}:\n"
        "    try:\n"
        "        open(place, 'w').write('x'); print('wrote', place)\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__)\n"
        f"print(os.path.exists({str(secret)!r}))\n"
        "open('own.txt', 'w').write('x'); open('/tmp/own', 'w').write('x')\n"
    )
    outcome = await run_python(code, limits=ROOMY)
    assert "wrote" not in outcome.stdout and outcome.stdout.endswith("False\n")
    assert outcome.is_success, outcome.stderr
    assert secret.read_text() == "the user's"
    full = await run_python("open('a', 'w').write('x' * 2**26)", limits=ROOMY)
    assert not full.is_success
    many = (
        "n = 0\n"
        "try:\n"
        "    while True:\n"
        "        n += open(f'f{n}', 'w').write('x' * 2**20)\n"
        "except OSError:\n"
        "    print(n)\n"
    )
    assert 0 < int((await run_python(many, limits=ROOMY)).stdout) <= 2**25


async def test_there_is_no_network_not_even_the_machines_own():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import socket\n"
            f"for address in (('127.0.0.1', {port}), ('1.1.1.1', 53)):\n"
            "    try:\n"
            "        socket.create_connection(address, 5); print('connected')\n"
            "    except OSError as error:\n"
            "        print(error.errno)\n"
        )
        outcome = await run_python(code, limits=ROOMY)
    assert "connected" not in outcome.stdout and len(outcome.stdout.splitlines()) == 2


async def test_code_sees_no_process_but_its_own_and_gets_no_rights():
    code = (
        "import ctypes, os, signal\n"
        "print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()) == [1, os.getpid()])\n"
        "libc = ctypes.CDLL(None)\n"
        "print(libc.unshare(0x10000000), libc.unshare(0x00020000))\n"
        "print(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line[:6] == 'CapEff'])\n"
        "try:\n"
        "    os.kill(1, signal.SIGKILL)\n"
        "except PermissionError:\n"
        "    print('not allowed')\n"
        "print(dict(os.environ).get('SECRET'))\n"
    )
    os.environ["SECRET"] = "of the user's"
    try:
        outcome = await run_python(code, limits=ROOMY)
    finally:
        del os.environ["SECRET"]
    lines = outcome.stdout.splitlines()
    assert lines[:4] == ["True", "-1 -1", "-1", "['0000000000000000']"], outcome
    assert lines[-1] == "None"


async def test_code_cannot_say_itself_how_it_ended():
    code = (
        "import os\n"
        'said = b\'{"ending": "exit", "status": 0}\'\n'
        "for number in range(3, 256):\n"
        "    try:\n"
        "        os.write(number, said); print('wrote', number)\n"
        "    except OSError:\n"
        "        pass\n"
        "raise SystemExit(9)\n"
    )
    outcome = await run_python(code, limits=ROOMY)
    assert (outcome.ending, outcome.status, outcome.stdout) == ("exit", 9, "")


async def test_output_is_cut_and_does_not_fill_the_memory():
    code = "import sys\nfor _ in range(64): sys.stdout.write('x' * 2**16)"
    outcome = await run_python(code, limits=Limits(wall_s=60, output_bytes=100))
    assert outcome.stdout == "x" * 100 and outcome.is_success


async def test_a_run_that_nobody_waits_for_leaves_no_process():
    mark = f"sleeps{os.getpid()}"
    sleeping = names(mark) + "import time; time.sleep(600)"
    running = asyncio.ensure_future(run_python(sleeping, limits=ROOMY))
    while not named(mark):
        assert not running.done()
        await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for _ in range(200):
        if not named(mark):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it still runs")


async def test_a_machine_without_a_protection_is_refused(monkeypatch, tmp_path):
    text = Path(inside.__file__).read_text().replace('"a {name} namespace"', '"x"')
    broken = tmp_path / "inside.py"
    broken.write_text(text.replace('_call("unshare", flag)', '_call("unshare", -1)'))
    monkeypatch.setattr(run_module.inside, "__file__", str(broken))
    with pytest.raises(SandboxRefused, match=r"no sandbox on this machine: x: .*Invalid argument"):
        await run_python("print(1)")


def test_limits_are_positive():
    with pytest.raises(ValueError, match="memory_mb must be above 0, got 0"):
        Limits(memory_mb=0)

"""A Ray cluster as its users start it: a head and two workers by `ray start`, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.cluster.network import unused_ports

START_S = 120
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, kw_only=True)
class ThreeNodes:
    """The cluster; `environment` is of somebody who has its token."""

    address: str
    folder: Path
    environment: dict[str, str]

    def ask(self, what: str) -> Any:
        """An answer of the dashboard, such as `api/v0/actors`."""
        request = urllib.request.Request(
            f"{self.address}/{what}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """All `actors` or `placement_groups` that Ray remembers."""
        return list(self.ask(f"api/v0/{kind}?detail=true")["data"]["result"]["result"])


@contextmanager
def three_nodes() -> Iterator[ThreeNodes]:
    """Nothing of it is activated: the interpreter's folder is not on the path of its processes."""
    # Sockets below it must have short names.
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    (folder / "token").write_text(TOKEN)
    person = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VIRTUAL_ENV"))}
    person["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
    node = person | {"PATH": "/usr/local/bin:/usr/bin:/bin", "RAY_AUTH_MODE": "token"}
    port, dashboard, client = unused_ports(3, host="127.0.0.1")
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    head += [f"--ray-client-server-port={client}", "--num-cpus=4"]
    nodes = []
    try:
        nodes.append(start(head, node))
        for place in ("left", "right"):
            # In one folder the nodes would unpack the same package over each other.
            joining = [f"--address=127.0.0.1:{port}", f"--temp-dir={folder}/{place}"]
            offers = ["--num-cpus=4", f"--resources={json.dumps({place: 2})}"]
            nodes.append(start([*joining, *offers], node))
        yield ThreeNodes(address=f"http://127.0.0.1:{dashboard}", folder=folder, environment=person)
    finally:
        for process in reversed(nodes):
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """One node; returns when Ray says that it runs."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *("--node-ip-address=127.0.0.1", "--object-store-memory=100000000"),
            *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
            *arguments,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "--block" in line:  # "This command will now block ..."
            return process
    raise AssertionError("".join(said))


def end(process: subprocess.Popen[str]) -> None:
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=30)
    for left in alive:
        left.kill()
    process.wait(timeout=30)

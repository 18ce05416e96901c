"""Ray nodes on this machine that are strangers to each other: own address, own files, one wire.

Each is in a network namespace of its own, joined to the others by a bridge that leads nowhere else,
and has a private, empty disk over the folders that it is told to hide.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

START_S, STOP_S = 60.0, 30.0
PORT = 6379


def why_not() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    name = f"rr{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network and mount namespaces need root and iproute2: {error}"
    return ""


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_S)


def _ip(*arguments: str) -> None:
    run(["ip", *arguments])


class Nodes:
    """A head and workers, one namespace each; `close` ends all of it."""

    def __init__(self, temp_dir: Path, **settings: str) -> None:
        """A bridge without nodes; Ray's own files go below `temp_dir`, `settings` are its own."""
        self.prefix, self.temp_dir = f"rr{secrets.token_hex(3)}", temp_dir
        # Without what another cluster of this machine says of itself.
        plain = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # What pytest has on its path, as the folder of its `conftest.py`.
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        path = {"PYTHONPATH": os.pathsep.join(paths)}
        self.environment: Mapping[str, str] = {**plain, **token, **path, **settings}
        self.namespaces: list[str] = []
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.bridge = self._add_namespace("b")
        _ip("-n", self.bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.bridge, "link", "set", "bridge", "up")

    @property
    def head(self) -> str:
        """Where Ray's head listens."""
        return f"{self.address(0)}:{PORT}"

    def address(self, index: int) -> str:
        return f"10.77.0.{index + 1}"

    def add(self, labels: str, *, num_cpus: int, hidden: Sequence[Path] = ()) -> None:
        """One more node, the first as head, with folders of its own in place of the hidden ones."""
        index = len(self.processes)
        self._connect(index)
        self.start(index, labels, num_cpus=num_cpus, hidden=hidden)

    def start(self, index: int, labels: str, *, num_cpus: int, hidden: Sequence[Path] = ()) -> None:
        """Ray on a node that has none, for the first time or again."""
        role = [f"--address={self.head}"]
        if index == 0:
            role = ["--head", f"--port={PORT}", f"--temp-dir={self.temp_dir}"]
            role += ["--include-dashboard=false", "--disable-usage-stats"]
        options = [
            *role,
            f"--node-ip-address={self.address(index)}",
            *(f"--num-cpus={num_cpus}", "--num-gpus=0", f"--labels={labels}"),
            "--block",
            f"--object-store-memory={200 * 2**20}",
        ]
        mounts = [f"mount -t tmpfs tmpfs {folder}" for folder in hidden]
        script = " && ".join([*mounts, 'exec "$@"'])
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        self.processes[index] = subprocess.Popen(
            [*self.enter(index), "unshare", "--mount", "sh", "-c", script, "sh", *command],
            stdout=(self.temp_dir / f"{self.prefix}{index}.log").open("ab"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,
        )
        if index == 0:
            self._wait_for_head()

    def enter(self, index: int) -> list[str]:
        """What a command begins with to run on a node."""
        return ["ip", "netns", "exec", f"{self.prefix}{index}"]

    def wait_for(self, number: int) -> None:
        """Wait until so many nodes are there."""
        script = (
            f"import ray, time; ray.init(address='{self.head}', log_to_driver=False)\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {number}: time.sleep(0.2)"
        )
        subprocess.run(
            [*self.enter(0), sys.executable, "-c", script],
            env=self.environment, timeout=START_S, check=True, capture_output=True,
        )  # fmt: skip

    def lose(self, index: int) -> None:
        """End every process of a node at once, as where its power fails."""
        for pid in self._processes_in(f"{self.prefix}{index}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut_off(self, index: int) -> None:
        """Unplug a node: its processes live on, and reach nobody."""
        _ip("-n", self.bridge, "link", "set", f"plug{index}", "down")

    def bring_back(self, index: int) -> None:
        """Plug it in again, and wait until its Ray, which was given up meanwhile, has ended."""
        _ip("-n", self.bridge, "link", "set", f"plug{index}", "up")
        self.processes[index].wait(START_S)
        self.lose(index)  # what it may have left

    def close(self) -> None:
        """End every process of every node at once, then the namespaces."""
        for name in self.namespaces:
            for pid in self._processes_in(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait(STOP_S)
        for name in self.namespaces:
            _ip("netns", "del", name)

    def _processes_in(self, namespace: str) -> list[int]:
        command = ["ip", "netns", "pids", namespace]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=STOP_S, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def _add_namespace(self, name: str) -> str:
        namespace = f"{self.prefix}{name}"
        _ip("netns", "add", namespace)
        self.namespaces.append(namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _connect(self, index: int) -> None:
        namespace, plug = self._add_namespace(str(index)), f"plug{index}"
        _ip("-n", namespace, "link", "add", "wire0", "type", "veth", "peer", "name", plug)
        _ip("-n", namespace, "link", "set", plug, "netns", self.bridge)
        _ip("-n", self.bridge, "link", "set", plug, "master", "bridge", "up")
        _ip("-n", namespace, "addr", "add", f"{self.address(index)}/24", "dev", "wire0")
        _ip("-n", namespace, "link", "set", "wire0", "up")

    def _wait_for_head(self) -> None:
        probe = f"import socket; socket.create_connection(('{self.address(0)}', {PORT}), 1)"
        command = [*self.enter(0), sys.executable, "-c", probe]
        deadline_s = time.monotonic() + START_S
        while subprocess.run(command, capture_output=True, timeout=START_S).returncode:
            assert self.processes[0].poll() is None, "the head ended"
            assert time.monotonic() < deadline_s, "the head did not come up"
            time.sleep(0.2)

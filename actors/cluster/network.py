"""How processes on different nodes reach each other: the interface to use, and ports for them."""

from __future__ import annotations

import os
import random
import socket
from contextlib import closing, suppress
from pathlib import Path

import psutil
import ray

from rlhf_ray.errors import RunError

# Above the ports that Ray gives its workers, 10002 to 19999.
FIRST_PORT, LAST_PORT = 20_000, 65_535
OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def use_cluster_network() -> None:
    """Have gloo and vLLM use the address by which Ray's nodes reach this one.

    Left alone, gloo takes what the host's name resolves to, which is often the loopback, and vLLM
    the way to the internet. NCCL finds the fast interfaces by itself. What is set already stays.
    """
    address = ray.util.get_node_ip_address()
    os.environ.setdefault("VLLM_HOST_IP", address)
    for name, known in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in known):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def unused_ports(count: int, *, host: str) -> list[int]:
    """Different ports for processes that are started with their numbers.

    Any connection to elsewhere may take a port that the kernel hands out, between its choice here
    and the start of whoever listens on it: so these are none of those.

    Raises:
        RunError: There are not as many.
    """
    first, last = (int(port) for port in OUTGOING.read_text().split())
    outgoing = range(first, last + 1)
    ports = [port for port in range(FIRST_PORT, LAST_PORT + 1) if port not in outgoing]
    unused: list[int] = []
    for port in random.SystemRandom().sample(ports, k=len(ports)):
        if len(unused) == count:
            return unused
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind((host, port))
            unused.append(port)
    raise RunError(
        f"{host} has {len(unused)} unused ports from {FIRST_PORT} to {LAST_PORT} that the kernel "
        f"keeps for no outgoing connection (it keeps {first} to {last}), wanted {count}"
    )


class HeldPort:
    """A port that nobody else is given before the one that it is meant for listens on it.

    Linux lets several sockets have one port while at most one of them listens, if all of them say
    `SO_REUSEADDR`, as vLLM's rendezvous does. This one never listens.
    """

    def __init__(self, host: str) -> None:
        """Take a free port of this node."""
        self.host = host
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))

    @property
    def port(self) -> int:
        """Its number."""
        return int(self._socket.getsockname()[1])

    def release(self) -> None:
        """Leave it to whoever listens there."""
        self._socket.close()

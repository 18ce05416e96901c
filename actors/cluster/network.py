"""How processes on different nodes reach each other: the interface to use, and a port held free."""

from __future__ import annotations

import os
import socket

import psutil
import ray


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

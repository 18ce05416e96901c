"""A port is kept until the one that it was announced for listens on it."""

from __future__ import annotations

import os
import socket

import pytest

from actors.cluster import network
from actors.cluster.network import HeldPort, unused_ports
from rlhf_ray.errors import RunError

HOST = "127.0.0.1"


@pytest.fixture
def held():
    held = HeldPort(HOST)
    yield held
    held.release()


def test_nobody_else_gets_a_held_port(held):
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind((HOST, held.port))


def test_a_released_port_is_anybodys(held):
    port = held.port
    held.release()
    with socket.socket() as other:
        other.bind((HOST, port))
        assert other.getsockname() == (HOST, port)


def test_vllms_rendezvous_opens_on_a_held_port(held):
    from vllm.distributed.utils import StatelessProcessGroup

    port = held.port
    group = StatelessProcessGroup.create(HOST, port, rank=0, world_size=1)
    held.release()
    with socket.create_connection((HOST, port), timeout=5):
        assert group.all_gather_obj("here") == ["here"]


def test_gloo_and_vllm_use_the_interface_of_the_nodes_address(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "VLLM_HOST_IP"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: HOST)
    network.use_cluster_network()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["VLLM_HOST_IP"]) == ("lo", HOST)


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "fast0")
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.7")
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: HOST)
    network.use_cluster_network()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["VLLM_HOST_IP"]) == ("fast0", "10.0.0.7")


def test_unused_ports_differ_and_no_outgoing_connection_takes_one(tmp_path, monkeypatch):
    outgoing = tmp_path / "range"
    outgoing.write_text("32768\t60999\n")
    monkeypatch.setattr(network, "OUTGOING", outgoing)
    ports = unused_ports(100, host=HOST)
    assert len(set(ports)) == 100
    assert all(20_000 <= port < 32_768 or 60_999 < port <= 65_535 for port in ports)
    with socket.create_server((HOST, ports[0])):  # whoever is started with it listens there
        assert ports[0] not in unused_ports(100, host=HOST)


def test_without_unused_ports_the_error_says_how_many_there_are(tmp_path, monkeypatch):
    outgoing = tmp_path / "range"
    outgoing.write_text("1024 65534")
    monkeypatch.setattr(network, "OUTGOING", outgoing)
    with pytest.raises(RunError, match=r"has [01] unused ports .*1024 to 65534.* wanted 2"):
        unused_ports(2, host=HOST)

"""`rlhf-ray pool`: who cleans up what, and what is not forgotten."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from actors.pool.standing_cluster import Process, StandingCluster
from launch import pool
from launch.run import standing
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.errors import ConfigError, RunError

GONE = Process(pid=2**22 + 1, started_s=1.0)  # above the largest that Linux gives


@pytest.fixture(autouse=True)
def no_cluster(tmp_path, monkeypatch):
    """None is started; one that is joined does not answer."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(standing, "answers", lambda address: True)
    fake = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(pool, "ray", fake)

    def join(address: str) -> None:
        raise ConfigError(f"no Ray cluster answers at {address}")

    monkeypatch.setattr(pool, "join", join)


@pytest.fixture
def stopped(monkeypatch) -> list[StandingCluster]:
    stopped: list[StandingCluster] = []
    monkeypatch.setattr(standing, "stop_cluster", stopped.append)
    return stopped


@pytest.fixture
def config():
    return SftConfig.model_validate(
        {"data": {"path": "x"}, "policy": {"model": {"path": "a/b"}}, "run_dir": "runs/x"}
    )


def register(*, head=None, starter=None, address="10.0.0.1:6379"):
    cluster = StandingCluster(pool="lab", address=address, head=head, starter=starter, since_s=1.0)
    standing.register(cluster)
    return cluster


def test_a_start_under_anothers_name_touches_nothing(config, stopped):
    cluster = register()
    with pytest.raises(ConfigError, match="pool lab is there since"):
        pool.up(config, "lab")
    assert standing.cluster_of("lab") == cluster
    assert not stopped


@pytest.mark.parametrize("failure", [RunError("Ray did not start"), KeyboardInterrupt()])
def test_a_start_that_fails_ends_what_it_has_registered(failure, config, stopped, monkeypatch):
    def start_cluster(claimed: StandingCluster, **options: Any) -> StandingCluster:
        register(head=Process.own(), starter=claimed.starter)
        raise failure

    monkeypatch.setattr(standing, "start_cluster", start_cluster)
    with pytest.raises(type(failure)):
        pool.up(config, "lab")
    assert [cluster.head for cluster in stopped] == [Process.own()]
    assert not list(standing.folder().iterdir())


def test_a_start_on_a_cluster_that_cannot_be_joined_leaves_no_entry(config, stopped):
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 10\.0\.0\.1:6379"):
        elsewhere = config.ray.model_copy(update={"address": "10.0.0.1:6379"})
        pool.up(config.model_copy(update={"ray": elsewhere}), "lab")
    assert not list(standing.folder().iterdir())


def test_a_pool_on_anothers_cluster_that_does_not_answer_is_not_forgotten(stopped):
    cluster = register()
    with pytest.raises(RunError) as caught:
        pool.down("lab")
    assert "may still hold GPUs at 10.0.0.1:6379" in str(caught.value)
    assert str(standing.entry_file("lab")) in str(caught.value)
    assert standing.cluster_of("lab") == cluster
    assert not stopped


def test_a_cluster_of_its_own_is_ended_also_where_it_cannot_be_joined(stopped, capsys):
    cluster = register(head=GONE)
    assert pool.down("lab") == 0
    assert stopped == [cluster]
    assert standing.cluster_of("lab") is None
    assert "pool lab is down" in capsys.readouterr().out


def test_a_head_that_ends_by_itself_meanwhile_is_no_failure(monkeypatch):
    head = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def children(process: psutil.Process, recursive: bool) -> None:
        head.communicate(b"\n", timeout=30)
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(psutil.Process, "children", children)
    standing.stop_cluster(register(head=Process.of(head.pid)))
    assert head.returncode == 0


def test_a_pool_in_use_is_left_as_it_is(stopped, monkeypatch):
    def in_use(address: str) -> None:
        raise pool.PoolInUseError("pool lab is in use by runs/first")

    cluster = register(head=GONE)
    monkeypatch.setattr(pool, "join", in_use)
    with pytest.raises(ConfigError, match="in use by runs/first"):
        pool.down("lab")
    assert standing.cluster_of("lab") == cluster
    assert not stopped


def test_a_pool_that_is_being_started_is_told_of_and_left(stopped, capsys):
    own = Process.own()
    register(starter=own, address="")
    with pytest.raises(ConfigError, match=f"process {own.pid} starts pool lab"):
        pool.down("lab")
    with pytest.raises(ConfigError, match="pool lab is not up yet"):
        standing.address_of("lab")
    assert pool.status("") == 0
    assert f"pool lab: process {own.pid} starts it" in capsys.readouterr().out


def test_a_start_that_was_killed_is_told_of_and_cleared_away(stopped, capsys):
    register(starter=GONE, address="")
    assert pool.status("") == 0
    assert "was broken off; `rlhf-ray pool down --name lab`" in capsys.readouterr().out
    assert pool.down("lab") == 0
    assert standing.cluster_of("lab") is None


def test_the_status_of_many_pools_is_the_worst_of_them(monkeypatch, capsys):
    def run(command: list[str], **options: Any) -> SimpleNamespace:
        name = command[-1]
        if name == "slow":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return SimpleNamespace(returncode={"good": 0, "killed": -9, "bad": 2}[name])

    def status_of(*names: str) -> int:
        clusters = [SimpleNamespace(pool=name) for name in names]
        monkeypatch.setattr(standing, "entries", lambda: clusters)
        return pool.status("")

    monkeypatch.setattr(pool.subprocess, "run", run)
    assert status_of("good", "good") == 0
    assert status_of("good", "slow") == 1
    assert "pool slow: no answer within 120 s" in capsys.readouterr().out
    assert status_of("killed", "good") == 1
    assert status_of("slow", "bad", "good") == 2

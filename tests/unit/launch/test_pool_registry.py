"""The registry of standing pools: a name is one pool's, and nobody else's folder is believed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from actors.pool.standing_cluster import Process, StandingCluster
from launch.run import standing
from rlhf_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return standing.folder()


@pytest.fixture(scope="module")
def ended() -> Process:
    """A process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stamp = Process.of(process.pid)
    process.communicate(b"\n", timeout=30)
    return stamp


def registered(*, address="", head=None, starter=None):
    cluster = StandingCluster(pool="lab", address=address, head=head, starter=starter, since_s=1.0)
    standing.register(cluster)
    return cluster


def test_what_is_registered_is_read_again(ended, folder):
    cluster = registered(address="10.0.0.1:6379", head=ended, starter=Process.own())
    assert standing.cluster_of("lab") == cluster
    assert standing.cluster_of("other") is None
    assert [path.name for path in folder.iterdir()] == ["lab.json"]


def test_one_of_many_at_once_gets_a_name():
    def claim(number):
        try:
            return standing.claim("lab")
        except ConfigError as error:
            assert f"process {os.getpid()} starts pool lab" in str(error)
            return None

    with ThreadPoolExecutor(8) as threads:
        taken = [claimed for claimed in threads.map(claim, range(16)) if claimed]
    assert taken == standing.entries()
    assert taken[0].starter == Process.own()


@pytest.mark.parametrize("where", [{"address": "10.0.0.1:6379"}, {"head": Process.own()}])
def test_a_name_is_kept_as_long_as_something_may_run_under_it(where, ended):
    cluster = registered(starter=ended, **where)
    with pytest.raises(ConfigError, match="rlhf-ray pool down --name lab"):
        standing.claim("lab")
    assert standing.cluster_of("lab") == cluster


def test_a_name_of_which_nothing_is_left_is_taken(ended):
    for cluster in (
        registered(starter=ended),
        registered(starter=ended, head=ended, address="10.0.0.1:6379"),
        registered(head=replace(Process.own(), started_s=1.0), address="10.0.0.1:6379"),
    ):
        standing.register(cluster)
        assert standing.claim("lab").starter == Process.own()


def test_forgetting_leaves_what_another_has_registered_since(folder):
    old = registered()
    new = standing.claim("lab")
    standing.token_file("lab").touch()
    standing.forget(old)
    assert standing.cluster_of("lab") == new
    standing.forget(new)
    assert not list(folder.iterdir())


def test_a_folder_that_others_can_change_is_refused(folder):
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match=r"mode 700, got drwxr-x--- of user"):
        standing.entries()
    folder.rmdir()
    folder.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="mode 700, got l"):
        standing.claim("lab")

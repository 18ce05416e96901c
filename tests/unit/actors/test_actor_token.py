"""Which token Ray shows, and to whom this project gives one."""

from __future__ import annotations

import os

import pytest

from actors.cluster import ray_token


@pytest.fixture
def read(monkeypatch):
    """How often Ray read its environment anew; nothing of it is set, and no token is at hand."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    times: list[None] = []
    monkeypatch.setattr(ray_token, "_read_environment", lambda: times.append(None))
    monkeypatch.setattr(ray_token, "_is_token_at_hand", lambda: False)
    return times


def test_a_cluster_of_ones_own_has_a_token_that_nobody_knows(read):
    ray_token.use_own_token()
    first = os.environ.pop("RAY_AUTH_TOKEN")
    assert (os.environ["RAY_AUTH_MODE"], len(first), len(read)) == ("token", 64, 1)
    ray_token.use_own_token()
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_a_token_at_hand_or_none_at_all_is_the_users_choice(read, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_token.use_own_token()
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr(ray_token, "_is_token_at_hand", lambda: True)
    ray_token.use_own_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not read


def test_a_standing_clusters_token_is_shown_unless_the_user_has_said_how(read, tmp_path):
    ray_token.use_token_in(tmp_path / "token")
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert (os.environ["RAY_AUTH_MODE"], len(read)) == ("token", 1)
    ray_token.use_token_in(tmp_path / "other")
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")


def test_this_machines_token_is_shown_where_there_is_one_and_nobody_has_decided(read, monkeypatch):
    assert not ray_token.use_token_at_hand()
    monkeypatch.setattr(ray_token, "_is_token_at_hand", lambda: True)
    assert ray_token.use_token_at_hand()
    assert (os.environ["RAY_AUTH_MODE"], len(read)) == ("token", 1)
    assert not ray_token.use_token_at_hand()

"""The check of `make gpu-check` that all weights arrive: it passes here, and sees what does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from jobs import start_roles

from benchmarks.gpu_check.online import Online, digests_of
from benchmarks.gpu_check.scale import REHEARSAL, Shape
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects import publication
from rlhf_ray.loops.publication import publish

STORIES = Shape(family="llama", settings={"vocab_size": 512})


@pytest.fixture
def failing(pool, make_config, tmp_path):
    """`failing()`: the names of the measurements beyond their limits."""
    config = make_config(tmp_path)
    setting = Setting(scale=replace(REHEARSAL, small=STORIES), cards=(), folder=tmp_path)
    with asyncio.Runner() as loop:
        roles = loop.run(start_roles(config, pool))
        loop.run(publish(roles, 0))
        online = Online(
            config=config,
            pool=pool,
            roles=roles,
            loop=loop,
            loaded=loop.run(digests_of(roles.rollout.actors, config.timeouts.call_s)),
            process_gb=0.0,
        )

        def run():
            found = list(publication.check_arrival(setting, online))
            assert len(found) > 5
            return [one.name.partition(",")[0] for one in found if not one.is_within]

        yield run


def test_every_weight_arrives(failing):
    assert failing() == []


def test_weights_that_stay_behind_are_seen(failing, monkeypatch):
    """As where an engine acknowledges a publication and keeps what it has."""
    monkeypatch.setattr(publication, "scale_weights", lambda rank, factor: None)
    assert failing() == [
        "weights that are as before once all are changed",
        "the change moves log-probabilities by",
    ]


def stretch_norm(rank, factor):
    """Other weights than were there at first are published as the first ones."""
    import torch

    with torch.no_grad():
        rank.learner.lm.model.norm.weight.mul_(1.5 if factor == 1.0 else 1.25)


def test_weights_that_are_not_brought_back_are_seen(failing, monkeypatch):
    monkeypatch.setattr(publication, "scale_weights", stretch_norm)
    assert "weights that differ once they are changed back" in failing()

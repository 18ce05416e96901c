"""A rank that gives a model back has nothing of it left."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from learning import logprobs_of, plan_of

from actors.ranks.hosting import HostingRank


def storages() -> dict[int, weakref.ref]:
    found = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
    return {id(thing): weakref.ref(thing) for thing in found}


@pytest.fixture
def closed_later():
    """Nothing: the rank alone holds its learner, and releases it."""
    return lambda learner: learner


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what torch itself keeps as objects
@pytest.mark.parametrize("lora", [{}, {"lora": {"rank": 2, "alpha": 4.0}}])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_tensor_of_a_trained_model_is_left(make_policy, rows, monkeypatch, stage, lora):
    monkeypatch.setattr(HostingRank, "__init__", lambda self: None)
    rank = HostingRank()
    before = storages().keys()
    learner = make_policy(zero={"stage": stage}, model={"dtype": "bfloat16", **lora})
    learner.update(rows, plan_of(rows), 0.0)
    assert logprobs_of(learner, rows)
    made = [ref for number, ref in storages().items() if number not in before]
    size = max(parameter.numel() for parameter in learner.lm.parameters())
    assert any(ref().numel() >= size for ref in made if ref() is not None)
    rank.learner, rank.residency, rank.builder = learner, learner.engine.residency, learner.builder
    del learner
    rank.unload()
    left = [tuple(ref().shape) for ref in made if ref() is not None and ref().numel() >= size]
    assert not left

"""Where generation runs beside publications, an engine has room for the probe of each."""

from __future__ import annotations

import pytest

from actors.roles.engines import engine_spec, sync_spec
from rlhf_ray.config.online import GrpoConfig


def job(stories, *, publication=None, max_staleness=0, **rollout):
    return GrpoConfig.model_validate(
        {
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": str(stories)}},
            "reward": {"functions": [{"path": "a:b"}]},
            "rollout": rollout,
            "publication": publication or {},
            "max_staleness": max_staleness,
        }
    )


def test_the_probe_has_seats_of_its_own_beside_generation(stories):
    probe = {"probe_sequences": 5}
    rollout = {"max_num_seqs": 60, "max_num_batched_tokens": 62}
    before = engine_spec(job(stories, publication=probe, **rollout)).engine
    assert (before.max_num_seqs, before.max_num_batched_tokens) == (60, 62)
    beside = engine_spec(job(stories, publication=probe, max_staleness=1, **rollout)).engine
    # vLLM wants a token of each step for each sequence.
    assert (beside.max_num_seqs, beside.max_num_batched_tokens) == (65, 65)
    wide = rollout | {"max_num_batched_tokens": 500}
    beside = engine_spec(job(stories, publication=probe, max_staleness=2, **wide))
    # A pool's engine serves both kinds of jobs, where it runs as many sequences.
    assert beside == engine_spec(job(stories, **wide | {"max_num_seqs": 65}))


@pytest.mark.parametrize(("running", "keeps"), [("recompute", False), ("keep", True)])
def test_running_responses_are_recomputed_unless_they_are_to_be_kept(stories, running, keeps):
    assert sync_spec(job(stories, publication={"running": running})).keeps_cache is keeps
    assert not sync_spec(job(stories)).keeps_cache

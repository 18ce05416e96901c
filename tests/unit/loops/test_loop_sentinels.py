"""Each sentinel speaks of an ill run and not of a healthy one, resumed or not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fake_sink import FakeSink
from fakes import Company, make_config, make_prompts
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.sentinels import OnlineSentinelsConfig
from rlhf_ray.errors import TrainingStopped
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.sentinels import SENTINELS, Sentinels
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.names import AHEAD, NAMES

# Of the jobs of `make demo`: steps of each metric that a sentinel looks at.
HEALTHY = json.loads(Path(__file__).with_name("healthy_runs.json").read_text())

NOISE = [0.1, 0.12, 0.09, 0.11, 0.1, 0.13, 0.08] * 3
ILL = {
    "skipped": ("policy/skipped_steps", [0, 0, 1], 3),
    "loss": ("value/loss", [*NOISE, 0.5], 22),
    "grad_norm": ("sft/grad_norm", [*NOISE, 1.0], 22),
    "mismatch": ("mismatch/logprob_abs_mean", [0.01, 0.2], 2),
    "ess": ("mismatch/ess", [0.99, 0.3], 2),
    "kl": ("policy/kl_ref", [0.1, 3.0], 2),
    "negative_kl": ("policy/kl_ref", [0.5, *[-0.02] * 10], 11),
    "clip": ("policy/clip_share", [0.1, 0.4], 2),
    "entropy": ("policy/entropy", [1.5] * 5 + [0.1] * 5, 10),
    "truncated": ("rollout/truncated_share", [0.1, 0.6], 2),
    "zero_spread": ("rollout/zero_spread_share", [0.1, 0.8], 2),
    "constant_reward": ("rollout/reward_std", [0.4, *[0.0] * 5], 6),
}


def alarms_of(sentinels, metric, values):
    """Of each step."""
    return [sentinels.look({metric: float(value)}) for value in values]


def test_every_sentinel_is_configured_and_looks_at_metrics_that_exist():
    keys = set(OnlineSentinelsConfig.model_fields)
    assert (
        keys
        == {key for name in SENTINELS for key in (name, f"{name}_bound")}
        == {key for name in ILL for key in (name, f"{name}_bound")}
    )
    assert {metric for sentinel in SENTINELS.values() for metric in sentinel.metrics} <= set(NAMES)


@pytest.mark.parametrize("name", ILL)
def test_a_sentinel_speaks_of_an_ill_run_when_it_falls_ill(name):
    metric, values, step = ILL[name]
    told = alarms_of(Sentinels(OnlineSentinelsConfig()), metric, values)
    assert [index for index, alarms in enumerate(told, start=1) if alarms] == [step]
    [alarm] = told[-1]
    assert (alarm.metric, alarm.action) == (metric, "warn")
    assert f"sentinels.{name})" in alarm.text
    assert f"{metric} " in alarm.text


@pytest.mark.parametrize("job", HEALTHY)
def test_none_speaks_of_a_healthy_run(job):
    sentinels = Sentinels(OnlineSentinelsConfig())
    of_metrics = HEALTHY[job]
    assert of_metrics
    for step in range(max(map(len, of_metrics.values()))):
        metrics = {name: v[step] for name, v in of_metrics.items() if step < len(v)}
        assert not sentinels.look(metrics), step


def test_a_curve_that_hardly_moves_has_no_jumps():
    sentinels = Sentinels(OnlineSentinelsConfig())
    told = alarms_of(sentinels, "sft/loss", [*[2.0] * 21, 2.1, 2.0, 3.0])
    assert [bool(alarms) for alarms in told[-3:]] == [False, False, True]


def test_what_is_off_does_not_speak_and_a_bound_is_the_configurations():
    config = OnlineSentinelsConfig.model_validate({"kl": "off", "truncated_bound": 0.7})
    sentinels = Sentinels(config)
    assert not sentinels.look({"policy/kl_ref": 9.0, "rollout/truncated_share": 0.6})
    [alarm] = sentinels.look({"policy/kl_ref": 9.0, "rollout/truncated_share": 0.8})
    assert "0.8 is above 0.7 (sentinels.truncated)" in alarm.text
    assert OnlineSentinelsConfig.model_validate({"kl": False}).kl == "off", "as YAML reads off"


def test_the_age_of_what_is_trained_is_no_disagreement():
    def told(metrics):
        return {alarm.metric for alarm in Sentinels(OnlineSentinelsConfig()).look(metrics)}

    old = {"mismatch/logprob_abs_mean": 0.2, "mismatch/ess": 0.9}
    assert told(old) == {"mismatch/logprob_abs_mean"}
    assert told({**old, AHEAD: 0.0}) == set()
    apart = {**old, AHEAD: 0.0, "mismatch/probe_abs_mean": 0.2, "mismatch/ess": 0.4}
    assert told(apart) == {"mismatch/probe_abs_mean", "mismatch/ess"}


@given(values=st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=60), cut=st.integers(0, 60))
def test_a_resumed_run_judges_as_the_undisturbed_one(values, cut):
    whole, before = (Sentinels(OnlineSentinelsConfig()) for _ in range(2))
    metrics = sorted({metric for sentinel in SENTINELS.values() for metric in sentinel.metrics})
    steps = [dict.fromkeys(metrics, value) for value in values]
    told = [whole.look(step) for step in steps]
    first = [before.look(step) for step in steps[:cut]]
    resumed = Sentinels(OnlineSentinelsConfig())
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
    assert first + [resumed.look(step) for step in steps[cut:]] == told


async def test_a_run_that_is_to_stop_has_logged_and_saved_its_step_and_can_go_on(tmp_path):
    config = make_config(
        tmp_path, checkpoint={"every": 1}, sentinels={"kl": "stop", "kl_bound": 0.1}
    )
    company, sink = Company(config, lambda prompt, sample: float(sample)), FakeSink()

    def loop():
        evaluation = Evaluation(config, [])
        return OnlineLoop(config, company.roles(), make_prompts(10), evaluation, MetricsLog([sink]))

    with pytest.raises(TrainingStopped, match=r"step 1: far from the reference: policy/kl_ref 0.2"):
        await loop().run(None)
    assert [record.step for record in sink.records] == [0, 1]
    assert sink.records[1].warnings.keys() == {"policy/kl_ref"}
    found = CheckpointStore(tmp_path, keep=2).latest()
    assert found is not None and found.step == 1
    config = config.model_copy(update={"sentinels": OnlineSentinelsConfig()})
    await loop().run(found)
    assert company.num_updates == 3

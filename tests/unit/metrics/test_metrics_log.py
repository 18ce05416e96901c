"""The one interface: names, steps, and what reaches a sink."""

import pytest
from fake_sink import FakeSink

from rlhf_ray.metrics.log import MetricsLog, Table
from rlhf_ray.metrics.names import NAMES, check_names


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_step_reaches_every_sink_sorted_and_timed():
    clock, sinks = Clock(), [FakeSink(), FakeSink()]
    log = MetricsLog(sinks, elapsed_s=5.0, clock=clock)
    clock.now += 2.0
    log.log(1, {"rollout/reward_mean": 1, "policy/loss": 0.5})
    for sink in sinks:
        (record,) = sink.records
        assert (record.step, record.time_s) == (1, 7.0)
        assert list(record.metrics.items()) == [("policy/loss", 0.5), ("rollout/reward_mean", 1.0)]


@pytest.mark.parametrize("step", [3, 2])
def test_a_step_is_logged_once(step):
    log = MetricsLog([])
    log.log(3, {})
    with pytest.raises(ValueError, match=f"step must be above 3, got {step}"):
        log.log(step, {})


def test_a_resumed_log_begins_after_its_checkpoint():
    log = MetricsLog([], last_step=10)
    with pytest.raises(ValueError, match="above 10"):
        log.log(10, {})
    log.log(11, {})


@pytest.mark.parametrize("name", ["policy/los", "loss", "reward/", "eval/", ""])
def test_an_undocumented_name_is_refused(name):
    with pytest.raises(ValueError, match=r"must be documented in rlhf_ray/metrics/names\.py"):
        MetricsLog([]).log(1, {name: 0.0})


def test_reward_functions_and_evaluations_bring_their_own_names():
    check_names(["reward/contains_word", "eval/reward_mean", "eval/response_tokens_mean"])


PROMISED = """
rollout/{reward_mean,reward_std,response_tokens_mean,truncated_share,tokens_per_s}
policy/{loss,clip_share,entropy,kl_ref,kl_old,grad_norm,lr}
value/{loss,clip_share,explained_variance,grad_norm,lr}
mismatch/{logprob_abs_max,logprob_abs_mean,ess}
async/{staleness_mean,staleness_max}
sync/{seconds,bytes}
time/{generate,score,update,publish,step,wait_rollout,wait_update}
perf/{tokens_per_s,mfu,bubble_share}
sft/{loss}
"""


def test_the_promised_names_are_there():
    for line in PROMISED.split():
        prefix, _, names = line.partition("/")
        assert {f"{prefix}/{name}" for name in names.strip("{}").split(",")} <= NAMES.keys()


def test_a_row_must_fit_its_columns():
    with pytest.raises(ValueError, match="2 cells"):
        MetricsLog([]).table(Table(step=1, name="eval", columns=["prompt", "score"], rows=[["a"]]))


def test_leaving_the_block_closes_and_tells_of_a_failure():
    good, bad = FakeSink(), FakeSink()
    with MetricsLog([good]):
        pass
    with pytest.raises(RuntimeError), MetricsLog([bad]):
        raise RuntimeError
    assert (good.closed, bad.closed) == (False, True)

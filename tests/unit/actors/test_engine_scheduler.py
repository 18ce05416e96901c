"""What an engine on a CPU tells of a step: tokens at once, log-probabilities at the end."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from actors.engines.cpu_scheduler import FinalLogprobsScheduler


class Request:
    def __init__(self, **settings: Any) -> None:
        final = RequestOutputKind.FINAL_ONLY
        self.sampling_params = SamplingParams(**{"output_kind": final, "logprobs": 0} | settings)


@pytest.fixture
def scheduler(monkeypatch):
    """vLLM's own, as far as it is called: `step` is what it makes of one, for its only client."""
    monkeypatch.setattr(
        Scheduler,
        "update_from_output",
        lambda self, *_: {0: EngineCoreOutputs(outputs=self.step)},
    )
    scheduler: Any = object.__new__(FinalLogprobsScheduler)
    scheduler._kept = WeakKeyDictionary()
    return scheduler


def output(name, token, *, ends=False):
    lists = LogprobsLists(
        np.array([[token]]), np.array([[-token / 10]], dtype=np.float32), np.array([0])
    )
    reason = FinishReason.LENGTH if ends else None
    return EngineCoreOutput(name, [token], new_logprobs=lists, finish_reason=reason)


def told(scheduler, *outputs):
    scheduler.step = list(outputs)
    return scheduler.update_from_output(SimpleNamespace(), SimpleNamespace())[0].outputs


def test_tokens_pass_and_log_probabilities_come_with_the_last(scheduler):
    scheduler.requests = {"a": Request(), "b": Request()}
    first = told(scheduler, output("a", 1), output("b", 7))
    assert [(o.new_token_ids, o.new_logprobs) for o in first] == [([1], None), ([7], None)]
    [second] = told(scheduler, output("a", 2))
    assert second.new_logprobs is None
    a, b = told(scheduler, output("a", 3, ends=True), output("b", 8))
    assert b.new_logprobs is None
    assert a.new_logprobs.logprob_token_ids.tolist() == [[1], [2], [3]]
    np.testing.assert_allclose(a.new_logprobs.logprobs, [[-0.1], [-0.2], [-0.3]])
    assert a.new_logprobs.sampled_token_ranks.tolist() == [0, 0, 0]


def test_one_token_is_a_response(scheduler):
    scheduler.requests = {"a": Request()}
    [only] = told(scheduler, output("a", 4, ends=True))
    assert only.new_logprobs.logprob_token_ids.tolist() == [[4]]


@pytest.mark.parametrize(
    "settings", [{"stop": ["."]}, {"output_kind": RequestOutputKind.DELTA}], ids=["stop", "stream"]
)
def test_nothing_is_kept_of_what_the_other_process_may_end_or_reads_at_once(scheduler, settings):
    scheduler.requests = {"a": Request(**settings)}
    for ends in (False, True):
        [step] = told(scheduler, output("a", 1, ends=ends))
        assert step.new_logprobs.logprob_token_ids.tolist() == [[1]]


def test_what_asks_for_none_gets_none(scheduler):
    scheduler.requests = {"probe": Request(logprobs=None)}
    [step] = told(scheduler, EngineCoreOutput("probe", [1], finish_reason=FinishReason.LENGTH))
    assert step.new_logprobs is None


def test_a_request_that_is_ended_takes_what_is_kept_along(scheduler):
    scheduler.requests = {"a": Request(), "b": Request()}
    told(scheduler, output("a", 1), output("b", 1))
    del scheduler.requests["a"]
    gc.collect()
    assert len(scheduler._kept) == 1

"""A reward function that ends a run does so by name; nothing left looks finished."""

from __future__ import annotations

import json

import pytest
from jobs import SCORERS, train

from rlhf_ray.errors import RunError

# Of the 2 samples of a prompt.
SAID = {
    "raises": r"raised LookupError: no such word",
    "one_too_few": r"must return 2 scores, got 1",
    "not_a_number": r"the score of prompt '\S+' must be a finite number or None, got nan",
    "never_returns": r"did not return within 2 s for 2 completions",
}


@pytest.mark.parametrize("function", SAID)
def test_a_bad_reward_function_fails_the_run_by_name(function, pool, make_config, tmp_path):
    config = make_config(
        tmp_path,
        reward={"functions": [{"path": f"{SCORERS}:{function}"}]},
        timeouts={"reward_s": 2.0},
        failures={"row": {"retries": 0, "then": "stop"}},
        checkpoint={"every": 1},
    )
    with pytest.raises(RunError) as caught:
        train(config, pool)
    message = str(caught.value)
    named = f"one/reward_worker/0: reward function '{function}'"
    assert message.startswith(named)
    assert caught.match(SAID[function] + r" \(draw \d+, prompt '\S+'\)$")

    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert message in status["reason"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0]  # 0 is before the first step
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "checkpoints").exists()

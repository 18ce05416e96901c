"""What CONTRIBUTING.md shows works as it stands."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path

import pytest
import torch

from rlhf_ray.algorithms import preference_losses
from rlhf_ray.algorithms.preference_losses import PairInputs, PairParams
from rlhf_ray.config.rewards import RewardFunctionConfig
from rlhf_ray.data.errors import RowError
from rlhf_ray.data.row import Row
from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.rewards.functions import load_functions

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def examples(language):
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


LOSS, REWARD, FORMAT = examples("python")


def test_the_loss_is_registered_and_gives_one_value_a_pair(monkeypatch):
    monkeypatch.setattr(
        preference_losses.PAIR_LOSSES, "_entries", dict(preference_losses.PAIR_LOSSES._entries)
    )
    exec(LOSS, {})
    zeros_B = torch.zeros(3)
    inputs = PairInputs(
        chosen_logps_B=torch.tensor([-1.0, -2.0, -3.0]),
        rejected_logps_B=torch.tensor([-2.0, -2.0, -1.0]),
        reference_chosen_logps_B=zeros_B,
        reference_rejected_logps_B=zeros_B,
        chosen_lens_B=torch.tensor([2, 2, 2]),
        rejected_lens_B=torch.tensor([2, 2, 2]),
        num_pairs=3,
        num_chosen_tokens=6,
    )
    params = PairParams(
        beta=0.5,
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        discopop_tau=0.05,
        simpo_gamma=0.5,
    )
    loss_B = preference_losses.PAIR_LOSSES["squared"](inputs, params)
    assert loss_B.tolist() == pytest.approx([0.25, 1.0, 4.0])


def test_the_reward_scores(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARD, encoding="utf-8")
    [ends_well] = load_functions([RewardFunctionConfig(path=f"{path}:ends_well")])
    batch = ScoringBatch(
        prompt_ids_B=["a:0", "a:1"],
        prompts_B=["Once", [{"role": "user", "content": "2 + 2?"}]],
        completions_B=["upon a time. ", [{"role": "assistant", "content": "4"}]],
        prompt_token_ids_B=[[3], [4]],
        completion_ids_B=[[1], [2]],
        opens_reasoning_B=[False] * 2,
        columns={},
    )
    assert asyncio.run(ends_well.score(batch, timeout_s=10)) == [1.0, 0.0]


def test_the_format_reads_rows_and_names_what_is_wrong():
    names = {}
    exec(FORMAT, names)
    read = names["QUESTION"].read
    good = Row(row_id="x:0", where="x:1", columns={"question": "2 + 2?", "solution": "4"})
    [sample] = read(good)
    assert (sample.prompt, sample.answers_K) == ("2 + 2?", ("4",))
    bad = Row(row_id="x:1", where="x:2", columns={"question": "2 + 2?", "solution": 4})
    with pytest.raises(RowError, match="x:2"):
        list(read(bad))

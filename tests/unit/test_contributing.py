"""What CONTRIBUTING.md shows works as it stands."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path

import pytest
import torch
from markdown_pages import Page

from rlhf_ray.algorithms import advantages, preference_losses
from rlhf_ray.algorithms.preference_losses import PairInputs
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.dpo import PreferenceLossConfig
from rlhf_ray.config.rewards import RewardFunctionConfig
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError
from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.rewards.functions import load_functions

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def examples(language):
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


TABLE = (ROOT / "rlhf_ray/config/algorithm_table.py").read_text(encoding="utf-8")
ADVANTAGE, LOSS, REWARD, FORMAT = examples("python")


@pytest.fixture
def add_row(monkeypatch):
    """Adds a row that the page shows; it is gone after the test, and so is its function."""
    for registry in (advantages.ADVANTAGES, preference_losses.PAIR_LOSSES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    def add(rows, name):
        [row] = re.findall(rf'`"{name}": (\w+\([^`]*\))`', TEXT)
        monkeypatch.setitem(rows, name, eval(row, dict(vars(table))))

    return add


def test_an_advantage_is_a_row_and_a_function(add_row):
    with pytest.raises(ValueError, match="must have a row"):
        exec(ADVANTAGE, dict(vars(advantages)))
    add_row(table.ADVANTAGES, "sign")
    exec(ADVANTAGE, dict(vars(advantages)))
    outputs = advantages.estimate_advantages(
        "sign",
        advantages.AdvantageInputs(
            token_rewards_T=torch.tensor([0.0, 3.0, 1.0, 5.0]),
            values_T=None,
            mask_T=torch.ones(4, dtype=torch.bool),
            segments_T=torch.tensor([0, 0, 1, 2]),
            groups_B=torch.tensor([7, 7, 8]),
        ),
        AlgorithmConfig(advantage="grpo"),
    )
    assert outputs.advantages_T.tolist() == [1.0, 1.0, -1.0, 0.0]


def test_the_places_of_algorithms_are_there():
    section = Page("CONTRIBUTING.md").section("## Add an algorithm")
    line = r"^\| [^|]+ \| `(\w+)` \| `(\w+\.py)` \|[^|]+\| `(\w+\.py)` \|$"
    places = re.findall(line, section, re.MULTILINE)
    rows = set(re.findall(r"^([A-Z]\w+)(?:: Mapping.*)? = ", TABLE, re.MULTILINE)) - {"LOSS_TERMS"}
    rows = {name for name in rows if name.isupper()}
    assert {row for row, _, _ in places} == rows
    for row, function, oracle in places:
        assert "register" in (ROOT / "rlhf_ray/algorithms" / function).read_text(encoding="utf-8")
        assert row in (ROOT / "rlhf_ray/algorithms" / function).read_text(encoding="utf-8")
        assert (ROOT / "tests/unit/algorithms" / oracle).is_file()


def test_files_that_recipes_touch_are_there():
    for heading in ("## Replace a role", "## Add a training engine"):
        section = Page("CONTRIBUTING.md").section(heading)
        named = re.findall(r"`((?:rlhf_ray|actors|launch|tests)/[\w./]+|pyproject\.toml)`", section)
        assert len(named) > 5
        for path in named:
            assert (ROOT / path).exists(), path


def test_the_loss_is_registered_and_gives_one_value_a_pair(add_row):
    add_row(table.PREFERENCE_LOSSES, "squared")
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
    params = PreferenceLossConfig(beta=0.5)
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

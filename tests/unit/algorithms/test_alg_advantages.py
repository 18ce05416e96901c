"""What holds for advantages beyond the formulas: groups, transparent tokens, whitening, scores."""

import numpy as np
import pytest
import torch
from alg_batches import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.advantages import (
    ADVANTAGES,
    AdvantageInputs,
    estimate_advantages,
)
from rlhf_ray.algorithms.ragged import whiten
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.experience.rewards import token_rewards

PARAMS = AlgorithmConfig(advantage="gae", gamma=0.97, lam=0.9)
GROUP_METHODS = [name for name in ADVANTAGES if table.ADVANTAGES[name].needs_groups]


def estimate(
    name: str,
    rewards_T: Tensor,
    masks: list[list[bool]],
    groups: list[int],
    values_T: Tensor | None = None,
    params: AlgorithmConfig = PARAMS,
    trained_T: Tensor | None = None,
) -> Tensor:
    """Where rewards are told apart, there are two: a sequence's total, and its square."""
    structure = make_batch(masks, seed=0)
    action_mask_T = torch.where(structure.mask_T, rewards_T, 0.0)
    totals_B = action_mask_T.new_zeros(len(masks)).index_add(0, structure.segments_T, action_mask_T)
    return estimate_advantages(
        name,
        AdvantageInputs(
            token_rewards_T=rewards_T,
            values_T=values_T,
            mask_T=structure.mask_T,
            trained_T=trained_T,
            segments_T=structure.segments_T,
            groups_B=torch.tensor(groups, dtype=torch.int64),
            rewards_BK=torch.stack([totals_B, totals_B.square()], dim=1),
            applies_BK=torch.ones(len(masks), 2, dtype=torch.bool),
            weights_K=torch.ones(2),
        ),
        params,
    ).advantages_T


def test_only_gae_needs_a_critic_and_only_gdpo_each_reward() -> None:
    assert [name for name in ADVANTAGES if table.ADVANTAGES[name].needs_values] == ["gae"]
    with pytest.raises(ValueError, match="values_T must be given"):
        estimate("gae", torch.zeros(2), [[True, True]], [0])
    assert [name for name in ADVANTAGES if table.ADVANTAGES[name].needs_parts] == ["gdpo"]
    one = torch.zeros(1, dtype=torch.int64)
    sums_alone = AdvantageInputs(
        token_rewards_T=torch.zeros(1),
        values_T=None,
        mask_T=torch.ones(1, dtype=torch.bool),
        segments_T=one,
        groups_B=one,
    )
    with pytest.raises(ValueError, match="rewards_BK must be given"):
        estimate_advantages("gdpo", sums_alone, PARAMS)


@pytest.mark.parametrize("name", GROUP_METHODS)
def test_a_group_of_one_sample_has_advantage_zero(name: str) -> None:
    masks = [[True, True], [True], [True, True, True]]
    rewards = torch.tensor([0.0, 5.0, 1.0, 0.0, 0.0, 3.0])
    advantages = estimate(name, rewards, masks, groups=[4, 9, 9])
    assert not advantages[:2].any()
    assert advantages[2:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [0.1, 1 / 3, -7.7, 1e6 + 0.1])
@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("name", GROUP_METHODS)
def test_a_group_without_spread_has_advantage_exactly_zero(
    name: str, whitened: bool, score: float, dtype: torch.dtype
) -> None:
    params = PARAMS.model_copy(update={"whiten_advantages": whitened})
    for size in (2, 3, 7):
        rewards = torch.full((size,), score, dtype=dtype)
        assert not estimate(name, rewards, [[True]] * size, [0] * size, params=params).any()
        # Nor does a sequence without own tokens bring any spread.
        rewards = torch.full((size + 1,), score, dtype=dtype)
        masks = [[True]] * size + [[False]]
        assert not estimate(name, rewards, masks, [0] * (size + 1)).any()


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("name", GROUP_METHODS)
def test_groups_without_spread_say_nothing_when_the_step_is_whitened(
    name: str, whitened: bool
) -> None:
    """A long bad answer and a short good one: the mean over tokens is not 0."""
    masks = [[True] * 5, [True], [True] * 3, [True] * 2, [True]]
    rewards = torch.zeros(12)
    rewards[4], rewards[5] = -1.0, 2.0
    rewards[[8, 10]] = 0.7  # two that score alike, and after them one alone
    params = PARAMS.model_copy(update={"whiten_advantages": whitened})
    advantages = estimate(name, rewards, masks, [0, 0, 1, 1, 2], params=params)
    assert not advantages[6:].any()
    assert advantages[:6].all()
    alone = estimate(name, rewards[:6], masks[:2], [0, 0], params=params)
    if whitened or name != "gdpo":  # whose own deviation is that of the whole step
        torch.testing.assert_close(advantages[:6], alone)
    if whitened or table.ADVANTAGES[name].whitens:
        assert advantages[:6].mean().item() == pytest.approx(0.0, abs=1e-6)
        assert advantages[:6].var().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_whitening_looks_at_the_tokens_that_are_trained(name: str) -> None:
    """A masked sequence counts in its group, not in the scale of the others' advantages."""
    masks = [[True] * 4, [True] * 2, [True] * 3, [True] * 5]
    batch = make_batch(masks, seed=4, dtype=torch.float64)
    arguments = (name, batch.returns_T, masks, [0, 0, 1, 1], batch.values_T)
    trained_T = batch.segments_T != 1
    raw = estimate(*arguments)
    white = estimate(
        *arguments,
        params=PARAMS.model_copy(update={"whiten_advantages": True}),
        trained_T=trained_T,
    )
    assert not white[~trained_T].any()
    assert white[trained_T].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white[trained_T].var().item() == pytest.approx(1.0, rel=1e-5)
    if not table.ADVANTAGES[name].whitens:
        kept = raw[trained_T]
        torch.testing.assert_close(
            white[trained_T], (kept - kept.mean()) / (kept.var() + 1e-8).sqrt()
        )
        # What it was compared with counts all the same.
        assert torch.equal(estimate(*arguments, trained_T=trained_T), raw)


@pytest.mark.parametrize("name", GROUP_METHODS)
def test_a_reward_that_is_not_a_number_is_not_hidden(name: str) -> None:
    rewards = torch.tensor([1.0, float("nan"), 0.0])
    assert estimate(name, rewards, [[True]] * 3, [0, 0, 0]).isnan().any()


def test_rewards_that_tie_in_their_sum_are_told_apart() -> None:
    """(1, 0) and (0, 1) sum to the same; a reward of a hundred does not drown one of 1."""
    parts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])

    def advantages(rewards_BK: Tensor, weights: list[float]) -> Tensor:
        return estimate_advantages(
            "gdpo",
            AdvantageInputs(
                token_rewards_T=rewards_BK.sum(1),
                values_T=None,
                mask_T=torch.ones(4, dtype=torch.bool),
                segments_T=torch.arange(4),
                groups_B=torch.zeros(4, dtype=torch.int64),
                rewards_BK=rewards_BK,
                applies_BK=torch.ones(4, 2, dtype=torch.bool),
                weights_K=torch.tensor(weights),
            ),
            PARAMS,
        ).advantages_T

    uneven = advantages(parts, [2.0, 1.0])
    assert uneven[0] > 0 > uneven[1]
    scaled = advantages(parts * torch.tensor([1.0, 100.0]), [1.0, 1.0])
    torch.testing.assert_close(scaled, advantages(parts, [1.0, 1.0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GROUP_METHODS)
def test_a_sequence_without_own_tokens_is_not_in_its_group(name: str) -> None:
    rewards = torch.tensor([1.0, 0.0, 4.0])
    alone = estimate(name, rewards, [[True], [True], [True]], [0, 0, 0])
    padded = torch.tensor([1.0, 9.0, 9.0, 0.0, 4.0])
    masks = [[True], [False, False], [True], [True]]
    with_empty = estimate(name, padded, masks, [0, 0, 0, 0])
    assert torch.equal(with_empty[[0, 3, 4]], alone)


@st.composite
def sequences_with_tools(draw: st.DrawFn) -> tuple[list[list[bool]], int]:
    sequence = st.lists(st.booleans(), min_size=1, max_size=8)
    masks = draw(st.lists(sequence, min_size=1, max_size=5))
    return masks, draw(st.integers(0, 1000))


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@settings(max_examples=30, derandomize=True)
@given(drawn=sequences_with_tools())
def test_tokens_that_are_not_own_are_transparent(
    name: str, drawn: tuple[list[list[bool]], int]
) -> None:
    """Cutting tool tokens out changes no advantage, wherever they stood."""
    masks, seed = drawn
    batch = make_batch(masks, seed)
    groups = [i // 2 for i in range(len(masks))]
    own = batch.mask_T
    full = estimate(name, batch.returns_T, masks, groups, batch.values_T)
    dense_masks = [[True] * sum(s) for s in masks]
    dense = estimate(name, batch.returns_T[own], dense_masks, groups, batch.values_T[own])
    assert torch.equal(full[own], dense)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_the_order_of_sequences_does_not_matter(name: str) -> None:
    masks = [[True, False, True], [True], [True, True], [False, True]]
    groups = [0, 1, 0, 1]
    batch = make_batch(masks, seed=2, dtype=torch.float64)
    before = estimate(name, batch.returns_T, masks, groups, batch.values_T)
    order = [2, 0, 3, 1]
    index = torch.cat([torch.nonzero(batch.segments_T == i).flatten() for i in order])
    after = estimate(
        name,
        batch.returns_T[index],
        [masks[i] for i in order],
        [groups[i] for i in order],
        batch.values_T[index],
    )
    torch.testing.assert_close(after, before[index])


def test_interleaved_sequences() -> None:
    """Tokens of different sequences may alternate as long as each sequence is in order."""
    masks = [[True, True, True], [True, True]]
    batch = make_batch(masks, seed=2)
    expected = estimate("gae", batch.returns_T, masks, [0, 1], batch.values_T)
    index = torch.tensor([3, 0, 1, 4, 2])
    got = estimate_advantages(
        "gae",
        AdvantageInputs(
            token_rewards_T=batch.returns_T[index],
            values_T=batch.values_T[index],
            mask_T=batch.mask_T[index],
            segments_T=batch.segments_T[index],
            groups_B=torch.tensor([0, 1]),
        ),
        PARAMS,
    ).advantages_T
    assert torch.equal(got, expected[index])


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_no_tokens_at_all(name: str) -> None:
    for masks in ([], [[False, False], [False]]):
        num_tokens = sum(map(len, masks))
        zeros = torch.zeros(num_tokens)
        advantages = estimate(name, zeros, masks, list(range(len(masks))), zeros)
        assert advantages.shape == (num_tokens,)
        assert not advantages.any()


def test_whiten() -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.normal(5.0, 3.0, 50), rng.random(50) < 0.5
    white = whiten(torch.tensor(x), torch.tensor(mask)).numpy()
    expected = (x[mask] - x[mask].mean()) / np.sqrt(x[mask].var(ddof=1) + 1e-8)
    np.testing.assert_allclose(white[mask], expected)
    assert not white[~mask].any()


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -3e7])
def test_whitening_values_without_spread_gives_no_noise(value: float) -> None:
    for size in (0, 1, 2, 7):
        x = torch.full((size,), value, dtype=torch.float32)
        mask = torch.ones(size, dtype=torch.bool)
        torch.testing.assert_close(whiten(x, mask), torch.zeros(size), rtol=0, atol=1e-4)


def test_the_rewards_of_turns_stand_where_they_are_given() -> None:
    mask = torch.tensor([True, False, True, True])
    rewards = token_rewards(
        torch.tensor([1.0, 2.0]),
        None,
        kl_coefficient=0.0,
        mask_T=mask,
        segments_T=torch.tensor([0, 0, 0, 1]),
        turn_rewards_T=torch.tensor([0.25, torch.nan, 0.5, 0.0]),
    )
    assert rewards.tolist() == [0.25, 0.0, 1.5, 2.0]


def test_token_rewards_put_the_score_on_the_last_own_token() -> None:
    mask = torch.tensor([True, True, False, False, False, True, False, True])
    segments = torch.tensor([0, 0, 0, 1, 2, 2, 2, 3])
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    kl = torch.tensor([0.1, 0.2, 9.0, 9.0, 9.0, 0.3, 9.0, 0.4])
    rewards = token_rewards(scores, kl, kl_coefficient=0.5, mask_T=mask, segments_T=segments)
    # Sequence 1 has no own token: no place for its score.
    expected = torch.tensor([-0.05, 1.0 - 0.1, 0.0, 0.0, 0.0, 3.0 - 0.15, 0.0, 4.0 - 0.2])
    torch.testing.assert_close(rewards, expected)
    no_kl = token_rewards(scores, None, kl_coefficient=0.5, mask_T=mask, segments_T=segments)
    assert no_kl.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0]

"""Every registered name against a float64 reading of its paper, and no name without one."""

import importlib
import pkgutil
from typing import get_args

import alg_oracles as oracles
import alg_oracles_supervised as supervised_oracles
import numpy as np
import pytest
import torch
from alg_batches import (
    FLOAT_FIELDS,
    LOSS_CASES,
    Batch,
    make_batch,
    random_masks,
    reduction_of,
    with_leaves,
)

import rlhf_ray.algorithms
from rlhf_ray.algorithms.advantages import (
    ADVANTAGES,
    AdvantageInputs,
    AdvantageOutputs,
    estimate_advantages,
)
from rlhf_ray.algorithms.correction import CORRECTIONS, CorrectionInputs
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.metric_sums import values
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig, CorrectionConfig
from rlhf_ray.config.algorithm_table import RatioLevel, ReductionKind

SEEDS = range(4)
F64 = {"rtol": 1e-10, "atol": 1e-12}

ORACLES = {
    "policy loss": {n[7:] for n in oracles.LOSSES if n.startswith("policy/")},
    "value loss": {n[6:] for n in oracles.LOSSES if n.startswith("value/")},
    "loss term": {n[5:] for n in oracles.LOSSES if n.startswith("term/")},
    "KL estimator": set(oracles.KL),
    "off-policy correction": set(oracles.CORRECTIONS),
    "advantage estimator": set(oracles.ADVANTAGES),
    "pair loss": set(supervised_oracles.PAIRS),
    "label loss": set(supervised_oracles.LABELS),
    "reward loss": set(supervised_oracles.REWARDS),
    "SFT loss": set(supervised_oracles.SFT),
}


def all_registries() -> list[Registry[object]]:
    """Every Registry that any module of the package holds, found without knowing its name."""
    names = [m.name for m in pkgutil.iter_modules(rlhf_ray.algorithms.__path__)]
    modules = [importlib.import_module(f"rlhf_ray.algorithms.{name}") for name in names]
    found = {id(x): x for module in modules for x in vars(module).values()}
    return [x for x in found.values() if isinstance(x, Registry)]


def test_every_name_has_a_function_and_an_oracle() -> None:
    registered = {registry.subject: set(registry) for registry in all_registries()}
    assert registered == ORACLES
    pairs, labels = registered.pop("pair loss"), registered.pop("label loss")
    assert {name for name, row in table.PREFERENCE_LOSSES.items() if row.takes_labels} == labels
    assert set(table.PREFERENCE_LOSSES) - labels == pairs
    for registry in all_registries():
        assert set(registry.names) == registered.get(registry.subject, pairs | labels)
    assert set(get_args(ReductionKind)) == set(oracles.REDUCTIONS)
    assert set(get_args(table.Divergence)) == set(supervised_oracles.DIVERGENCES)
    assert set(LOSS_CASES) == set(oracles.LOSSES)


def sequences(x_T: torch.Tensor, batch: Batch) -> list[np.ndarray]:
    """The own tokens of each sequence as arrays."""
    return [
        x_T[(batch.segments_T == i) & batch.mask_T].detach().double().numpy()
        for i in range(len(batch.lens_B))
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_loss_and_gradient(name: str, seed: int) -> None:
    batch = with_leaves(make_batch(random_masks(seed), seed, torch.float64))
    weights_T = torch.rand(
        len(batch.mask_T), generator=torch.Generator().manual_seed(seed)
    ).double()
    loss_T = LOSS_CASES[name](batch).loss_T
    (loss_T * weights_T).sum().backward()

    oracle, argument = oracles.LOSSES[name]
    by_field = {f: sequences(getattr(batch, f), batch) for f in FLOAT_FIELDS}
    weights = sequences(weights_T, batch)
    gradient_T = getattr(batch, f"{argument}_T").grad
    for i, (loss, gradient) in enumerate(
        zip(sequences(loss_T, batch), sequences(gradient_T, batch), strict=True)
    ):
        if len(loss) == 0:
            continue
        x = {field[:-2]: by_field[field][i] for field in FLOAT_FIELDS}
        expected_loss, expected_gradient = oracle(x, weights[i])
        np.testing.assert_allclose(loss, expected_loss, **F64)
        np.testing.assert_allclose(gradient, expected_gradient, **F64)
    assert not loss_T[~batch.mask_T].any()
    assert not gradient_T[~batch.mask_T].any()


def test_the_random_batches_reach_every_branch_of_the_clipped_surrogate() -> None:
    """Guards the test above: without clipped ratios on both sides it would prove little."""
    reached = set()
    for seed in SEEDS:
        batch = make_batch(random_masks(seed), seed, torch.float64)
        ratio = (batch.logprobs_T - batch.old_logprobs_T).exp()[batch.mask_T]
        a = batch.advantages_T[batch.mask_T]
        reached |= {
            name
            for name, hit in {
                "high": (a > 0) & (ratio > 1.28),
                "low": (a < 0) & (ratio < 0.8),
                "dual": (a < 0) & (ratio > 3.0),
                "open": (ratio > 0.8) & (ratio < 1.28),
            }.items()
            if hit.any()
        }
    assert reached == {"high", "low", "dual", "open"}


@pytest.mark.parametrize("name", sorted(KL_ESTIMATORS))
def test_kl_estimator(name: str) -> None:
    rng = np.random.default_rng(0)
    logprobs, reference = -rng.exponential(1.0, 50), -rng.exponential(1.0, 50)
    kl = KL_ESTIMATORS[name](torch.tensor(logprobs), torch.tensor(reference))
    x = {"logprobs": logprobs, "reference_logprobs": reference}
    np.testing.assert_allclose(kl.numpy(), oracles.KL[name](x, np.ones(50))[0], **F64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", get_args(RatioLevel))
@pytest.mark.parametrize("name", sorted(CORRECTIONS))
def test_correction(name: str, level: RatioLevel, seed: int) -> None:
    # A product over a sequence is soon far from 1.
    scale = 0.1 if level == "sequence" else 2.0
    batch = make_batch(random_masks(seed), seed, torch.float64, scale=scale)
    inputs = CorrectionInputs(
        old_logprobs_T=batch.logprobs_T,
        behaviour_logprobs_T=batch.old_logprobs_T,
        mask_T=batch.mask_T,
        segments_T=batch.segments_T,
        num_sequences=len(batch.lens_B),
        level=level,
    )
    cap, low = (2.0, 0.5) if level == "token" else (1.4, 0.8)
    correction = CORRECTIONS[name](inputs, CorrectionConfig(cap=cap, low=low))
    old = sequences(batch.logprobs_T, batch)
    behaviour = sequences(batch.old_logprobs_T, batch)
    ratio = np.concatenate(oracles.RATIOS[level](old, behaviour))
    expected = oracles.CORRECTIONS[name](ratio, cap, low)
    np.testing.assert_allclose(correction.weights_T[batch.mask_T].numpy(), expected, **F64)
    assert not correction.weights_T[~batch.mask_T].any()

    metrics = values(correction.metrics)
    assert metrics["ess"] == pytest.approx(
        expected.sum() ** 2 / (len(expected) * (expected**2).sum()), rel=1e-12
    )
    cut = {"none": ratio < 0, "truncated": ratio > cap, "mask": (ratio > cap) | (ratio < low)}
    assert metrics["cut_share"] == pytest.approx(cut[name].mean())
    gaps = np.abs(np.concatenate(old) - np.concatenate(behaviour))
    assert metrics["logprob_abs_max"] == pytest.approx(gaps.max(), rel=1e-12)
    assert metrics["logprob_abs_mean"] == pytest.approx(gaps.mean(), rel=1e-12)
    assert metrics["clamp_share"] == 0.0


GROUPS = [7, 7, 7, 3, 3, 5, 7, 3, 5]


def estimate(name: str, batch: Batch, **params: bool) -> AdvantageOutputs:
    return estimate_advantages(
        name,
        AdvantageInputs(
            token_rewards_T=batch.returns_T,
            values_T=batch.values_T if table.ADVANTAGES[name].needs_values else None,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            groups_B=torch.tensor(GROUPS),
        ),
        AlgorithmConfig(advantage=name, gamma=0.97, lam=0.9, **params),
    )


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"gdpo"}))
def test_advantages(name: str, seed: int, whitened: bool) -> None:
    batch = make_batch(random_masks(seed, num_sequences=9), seed, torch.float64)
    outputs = estimate(name, batch, whiten_advantages=whitened)
    rewards, values_B = sequences(batch.returns_T, batch), sequences(batch.values_T, batch)
    raw = oracles.ADVANTAGES[name](rewards, values_B, GROUPS, 0.97, 0.9)
    expected = raw
    if whitened and not table.ADVANTAGES[name].whitens:
        in_groups = oracles.with_spread(rewards, GROUPS)
        expected = oracles.whiten(
            raw, in_groups if table.ADVANTAGES[name].needs_groups else [True] * 9
        )
    for got, want in zip(sequences(outputs.advantages_T, batch), expected, strict=True):
        np.testing.assert_allclose(got, want, **F64)
    assert not outputs.advantages_T[~batch.mask_T].any()
    if table.ADVANTAGES[name].needs_values:
        assert outputs.returns_T is not None
        want_returns = [a + v for a, v in zip(raw, values_B, strict=True)]
        for got, want in zip(sequences(outputs.returns_T, batch), want_returns, strict=True):
            np.testing.assert_allclose(got, want, **F64)
    else:
        assert outputs.returns_T is None


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_of_turns(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(random_masks(seed, num_sequences=9), seed, torch.float64)
    turns = [
        np.sort(rng.integers(0, rng.integers(1, 4), n)) if n else np.zeros(0, dtype=np.int64)
        for n in batch.lens_B.tolist()
    ]
    turns = [np.unique(k, return_inverse=True)[1] for k in turns]  # none is left out
    turns_T = torch.full_like(batch.segments_T, 99)
    turns_T[batch.mask_T] = torch.tensor(np.concatenate(turns))
    outputs = estimate_advantages(
        "turn_grpo",
        AdvantageInputs(
            token_rewards_T=batch.returns_T,
            values_T=None,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            groups_B=torch.tensor(GROUPS),
            turns_T=turns_T,
        ),
        AlgorithmConfig(advantage="turn_grpo", turn_share=share),
    )
    rewards = sequences(batch.returns_T, batch)
    expected = oracles.turn_grpo(rewards, [], GROUPS, 1.0, 1.0, turns, share)
    for got, want in zip(sequences(outputs.advantages_T, batch), expected, strict=True):
        np.testing.assert_allclose(got, want, **F64)
    assert outputs.advantages_T.any() and not outputs.advantages_T[~batch.mask_T].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_of_rewards_standardised_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(random_masks(seed, num_sequences=9), seed, torch.float64)
    # Of a few values, so that some groups have no spread in one reward or in all; some are None.
    rewards = rng.choice([0.0, 1.0, 0.25], size=(9, 3))
    applies = rng.random((9, 3)) < 0.8
    weights = [1.0, 0.5, 2.0]
    outputs = estimate_advantages(
        "gdpo",
        AdvantageInputs(
            token_rewards_T=torch.full_like(batch.returns_T, torch.nan),
            values_T=None,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            groups_B=torch.tensor(GROUPS),
            rewards_BK=torch.tensor(np.where(applies, rewards, np.nan)),
            applies_BK=torch.tensor(applies),
            weights_K=torch.tensor(weights),
        ),
        AlgorithmConfig(advantage="gdpo"),
    )
    parts = [
        [value if does else None for value, does in zip(*row, strict=True)]
        for row in zip(rewards.tolist(), applies.tolist(), strict=True)
    ]
    expected = oracles.gdpo(parts, weights, GROUPS, [n > 0 for n in batch.lens_B.tolist()])
    for got, want in zip(sequences(outputs.advantages_T, batch), expected, strict=True):
        np.testing.assert_allclose(got, np.full(len(got), want), **F64)
    assert outputs.advantages_T.any() and not outputs.advantages_T[~batch.mask_T].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_goes_on_from_the_value_where_a_sequence_was_cut(seed: int) -> None:
    batch = make_batch(random_masks(seed), seed, torch.float64)
    last = np.random.default_rng(seed).normal(size=len(batch.lens_B))
    outputs = estimate_advantages(
        "gae",
        AdvantageInputs(
            token_rewards_T=batch.returns_T,
            values_T=batch.values_T,
            last_values_B=torch.tensor(last),
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            groups_B=torch.zeros(len(batch.lens_B), dtype=torch.int64),
        ),
        AlgorithmConfig(advantage="gae", gamma=0.97, lam=0.9),
    )
    rewards, values_B = sequences(batch.returns_T, batch), sequences(batch.values_T, batch)
    # Its value is a reward, discounted once more, for reaching the place where it was cut.
    for reward, value in zip(rewards, last, strict=True):
        reward[-1:] += 0.97 * value
    expected = oracles.gae(rewards, values_B, [], 0.97, 0.9)
    for got, want in zip(sequences(outputs.advantages_T, batch), expected, strict=True):
        np.testing.assert_allclose(got, want, **F64)
    assert outputs.returns_T is not None
    for got, want, value in zip(
        sequences(outputs.returns_T, batch), expected, values_B, strict=True
    ):
        np.testing.assert_allclose(got, want + value, **F64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", get_args(ReductionKind))
def test_reduction(kind: ReductionKind, seed: int) -> None:
    batch = make_batch(random_masks(seed), seed, torch.float64)
    reduction = reduction_of(kind, batch.lens_B.tolist(), constant_length=11)
    got = reduction.reduce(batch.returns_T, batch.mask_T, batch.segments_T, batch.lens_B)
    want = oracles.REDUCTIONS[kind](sequences(batch.returns_T, batch), 11)
    assert got.item() == pytest.approx(want, rel=1e-12)

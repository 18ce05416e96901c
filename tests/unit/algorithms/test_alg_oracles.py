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
    totals_of,
    with_leaves,
)

import rlhf_ray.algorithms
from rlhf_ray.algorithms.advantages import ADVANTAGES, AdvantageInputs, AdvantageParams
from rlhf_ray.algorithms.correction import CORRECTIONS, CorrectionInputs, CorrectionParams
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.metric_sums import values
from rlhf_ray.algorithms.reduction import Reduction, ReductionKind
from rlhf_ray.algorithms.registry import Registry

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
    "reward loss": set(supervised_oracles.REWARDS),
    "SFT loss": set(supervised_oracles.SFT),
}


def all_registries() -> list[Registry[object]]:
    """Every Registry that any module of the package holds, found without knowing its name."""
    names = [m.name for m in pkgutil.iter_modules(rlhf_ray.algorithms.__path__)]
    modules = [importlib.import_module(f"rlhf_ray.algorithms.{name}") for name in names]
    found = {id(x): x for module in modules for x in vars(module).values()}
    return [x for x in found.values() if isinstance(x, Registry)]


def test_every_registered_name_has_an_oracle() -> None:
    registered = {registry.subject: set(registry) for registry in all_registries()}
    assert registered == ORACLES
    assert set(get_args(ReductionKind)) == set(oracles.REDUCTIONS)
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
@pytest.mark.parametrize("name", sorted(CORRECTIONS))
def test_correction(name: str, seed: int) -> None:
    batch = make_batch(random_masks(seed), seed, torch.float64, scale=2.0)
    inputs = CorrectionInputs(
        old_logprobs_T=batch.logprobs_T,
        behaviour_logprobs_T=batch.old_logprobs_T,
        mask_T=batch.mask_T,
    )
    correction = CORRECTIONS[name](inputs, CorrectionParams(cap=2.0, low=0.5))
    old = batch.logprobs_T[batch.mask_T].numpy()
    behaviour = batch.old_logprobs_T[batch.mask_T].numpy()
    expected = oracles.CORRECTIONS[name](old, behaviour, 2.0, 0.5)
    np.testing.assert_allclose(correction.weights_T[batch.mask_T].numpy(), expected, **F64)
    assert not correction.weights_T[~batch.mask_T].any()

    ratio = np.exp(old - behaviour)
    metrics = values(correction.metrics)
    assert metrics["ess"] == pytest.approx(
        expected.sum() ** 2 / (len(expected) * (expected**2).sum()), rel=1e-12
    )
    cut = {"none": ratio < 0, "truncated": ratio > 2.0, "mask": (ratio > 2.0) | (ratio < 0.5)}
    assert metrics["cut_share"] == pytest.approx(cut[name].mean())
    assert metrics["logprob_abs_max"] == pytest.approx(np.abs(old - behaviour).max(), rel=1e-12)
    assert metrics["logprob_abs_mean"] == pytest.approx(np.abs(old - behaviour).mean(), rel=1e-12)
    assert metrics["clamp_share"] == 0.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_advantages(name: str, seed: int) -> None:
    batch = make_batch(random_masks(seed, num_sequences=9), seed, torch.float64)
    groups = [7, 7, 7, 3, 3, 5, 7, 3, 5]
    rewards_T, values_T = batch.returns_T, batch.values_T
    outputs = ADVANTAGES[name](
        AdvantageInputs(
            token_rewards_T=rewards_T,
            values_T=values_T if ADVANTAGES[name].needs_values else None,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            groups_B=torch.tensor(groups),
        ),
        AdvantageParams(gamma=0.97, lam=0.9),
    )
    expected = oracles.ADVANTAGES[name](
        sequences(rewards_T, batch), sequences(values_T, batch), groups, 0.97, 0.9
    )
    for got, want in zip(sequences(outputs.advantages_T, batch), expected, strict=True):
        np.testing.assert_allclose(got, want, **F64)
    assert not outputs.advantages_T[~batch.mask_T].any()
    if ADVANTAGES[name].needs_values:
        assert outputs.returns_T is not None
        pairs = zip(expected, sequences(values_T, batch), strict=True)
        want_returns = [a + v for a, v in pairs]
        for got, want in zip(sequences(outputs.returns_T, batch), want_returns, strict=True):
            np.testing.assert_allclose(got, want, **F64)
    else:
        assert outputs.returns_T is None


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", get_args(ReductionKind))
def test_reduction(kind: ReductionKind, seed: int) -> None:
    batch = make_batch(random_masks(seed), seed, torch.float64)
    totals = totals_of(batch.lens_B.tolist(), constant_length=11)
    got = Reduction(kind=kind, totals=totals).reduce(
        batch.returns_T, batch.mask_T, batch.segments_T, batch.lens_B
    )
    want = oracles.REDUCTIONS[kind](sequences(batch.returns_T, batch), 11)
    assert got.item() == pytest.approx(want, rel=1e-12)

"""Metrics as sums, so that merging micro-batches and ranks gives the whole step's value.

A mean of means weighs a short micro-batch like a long one; sums do not. A loss returns
``{"clip_share": Metric(kind="mean", sums=[numerator, denominator]), ...}``; the learner merges them
over micro-batches with `merge`, over ranks with `across_ranks`, and reads floats with `values`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MetricKind = Literal[
    "mean", "difference_of_means", "max", "effective_sample_size", "explained_variance"
]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric before its last division.

    Attributes:
        kind: How `sums` become a value, and whether they merge by addition or (`max`) by maximum.
        sums: float64[k], detached. The meaning of each element is the constructor's below.
    """

    kind: MetricKind
    sums: Tensor


MetricSums = Mapping[str, Metric]


def mean_of(values_T: Tensor, mask_T: Tensor) -> Metric:
    """The mean of `values_T` over action tokens. Sums: [Σx, n]."""
    x = _masked(values_T, mask_T)
    return Metric(kind="mean", sums=torch.stack([x.sum(), _count(mask_T)]))


def mean_of_all(values_B: Tensor) -> Metric:
    """The mean of all of `values_B`. Sums as in `mean_of`."""
    return mean_of(values_B, torch.ones_like(values_B, dtype=torch.bool))


def difference_of_means(values_T: Tensor, is_first_T: Tensor) -> Metric:
    """The mean where `is_first_T` less the mean elsewhere. Sums: [Σx, n] of each side."""
    sides = [mean_of(values_T, mask_T).sums for mask_T in (is_first_T, ~is_first_T)]
    return Metric(kind="difference_of_means", sums=torch.cat(sides))


def max_of(values_T: Tensor, mask_T: Tensor) -> Metric:
    """The largest of `values_T` over action tokens. Holds [max], -inf where there is none."""
    x = _masked(values_T, mask_T, otherwise=-torch.inf)
    return Metric(
        kind="max", sums=torch.cat([x, x.new_full((1,), -torch.inf)]).amax(0, keepdim=True)
    )


def effective_sample_size(weights_T: Tensor, mask_T: Tensor) -> Metric:
    """The effective sample size as a share, (Σw)² / (n Σw²) (Kish 1965). Sums: [Σw, Σw², n]."""
    w = _masked(weights_T, mask_T)
    return Metric(
        kind="effective_sample_size", sums=torch.stack([w.sum(), w.square().sum(), _count(mask_T)])
    )


def explained_variance(values_T: Tensor, returns_T: Tensor, mask_T: Tensor) -> Metric:
    """The share 1 - Var(returns - values) / Var(returns) of variance that the critic explains.

    Sums: [ΣR, ΣR², Σ(R-V), Σ(R-V)², n]; in float64, where the difference of raw moments is safe.
    """
    r = _masked(returns_T, mask_T)
    e = r - _masked(values_T, mask_T)
    sums = torch.stack([r.sum(), r.square().sum(), e.sum(), e.square().sum(), _count(mask_T)])
    return Metric(kind="explained_variance", sums=sums)


def merge(parts: Iterable[MetricSums]) -> dict[str, Metric]:
    """Merges the metrics of several micro-batches; a name may be missing from some of them."""
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            before = merged.get(name)
            merged[name] = metric if before is None else _combine(before, metric)
    return merged


def across_ranks(
    metrics: MetricSums,
    *,
    sum_ranks: Callable[[Tensor], Tensor],
    max_ranks: Callable[[Tensor], Tensor],
) -> dict[str, Metric]:
    """Merges metrics over ranks with one collective for the sums and one for the maxima.

    Args:
        metrics: This rank's metrics. Every rank must hold the same names.
        sum_ranks: Returns the element-wise sum of a float64 vector over ranks.
        max_ranks: Returns the element-wise maximum.
    """
    reduced: dict[str, Metric] = {}
    for collective, is_max in ((sum_ranks, False), (max_ranks, True)):
        names = [name for name in sorted(metrics) if (metrics[name].kind == "max") == is_max]
        if not names:
            continue
        flat = collective(torch.cat([metrics[name].sums for name in names])).cpu()
        sizes = [metrics[name].sums.numel() for name in names]
        for name, sums in zip(names, flat.split(sizes), strict=True):
            reduced[name] = Metric(kind=metrics[name].kind, sums=sums)
    return reduced


def values(metrics: MetricSums) -> dict[str, float]:
    """Divides at last. A metric that nothing was measured for is left out, not reported as 0."""
    computed = {name: _VALUE[metric.kind](metric.sums.tolist()) for name, metric in metrics.items()}
    return {name: value for name, value in computed.items() if value is not None}


def _masked(values_T: Tensor, mask_T: Tensor, *, otherwise: float = 0.0) -> Tensor:
    """float64 [T]; to pick elements by a mask would have the host wait for a GPU to count them."""
    exact_T = values_T.detach().double()
    return torch.where(mask_T, exact_T, torch.full_like(exact_T, otherwise))


def _count(mask_T: Tensor) -> Tensor:
    return mask_T.sum().double()


def _combine(a: Metric, b: Metric) -> Metric:
    assert a.kind == b.kind, f"one name, two kinds of metric: {a.kind}, {b.kind}"
    sums = torch.maximum(a.sums, b.sums) if a.kind == "max" else a.sums + b.sums
    return Metric(kind=a.kind, sums=sums)


def _mean(sums: list[float]) -> float | None:
    total, count = sums
    return total / count if count else None


def _difference_of_means(sums: list[float]) -> float | None:
    first, second = _mean(sums[:2]), _mean(sums[2:])
    return None if first is None or second is None else first - second


def _max(sums: list[float]) -> float | None:
    return None if sums[0] == -torch.inf else sums[0]


def _ess(sums: list[float]) -> float | None:
    total, total_square, count = sums
    if not count:
        return None
    return total * total / (count * total_square) if total_square else 0.0


def _explained_variance(sums: list[float]) -> float | None:
    total, total_square, error, error_square, count = sums
    if count < 2:
        return None
    variance = total_square / count - (total / count) ** 2
    error_variance = error_square / count - (error / count) ** 2
    # Below this, the difference of the two moments is rounding: the returns do not vary.
    does_vary = variance > 1e-12 * total_square / count
    return 1.0 - error_variance / variance if does_vary else None


_VALUE: dict[MetricKind, Callable[[list[float]], float | None]] = {
    "mean": _mean,
    "difference_of_means": _difference_of_means,
    "max": _max,
    "effective_sample_size": _ess,
    "explained_variance": _explained_variance,
}

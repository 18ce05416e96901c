"""What a configuration allows and what there is: neither has a name that the other lacks."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from rlhf_ray.algorithms.advantages import ADVANTAGES
from rlhf_ray.algorithms.correction import CORRECTIONS
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES
from rlhf_ray.algorithms.preference_losses import LABEL_LOSSES, PAIR_LOSSES
from rlhf_ray.algorithms.regularizers import LOSS_TERMS
from rlhf_ray.algorithms.supervised_losses import REWARD_LOSSES, SFT_LOSSES
from rlhf_ray.algorithms.value_losses import VALUE_LOSSES
from rlhf_ray.config.algorithm import AlgorithmConfig, CorrectionConfig, KlConfig
from rlhf_ray.config.algorithm_table import Divergence, ReductionKind
from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.models import CHAT_TEMPLATE_NAMES
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.data.chat.tokenizer import CHAT_TEMPLATES
from rlhf_ray.data.formats.table import ROW_FORMATS

# (class, field) -> the names that there are
NAMES: dict[tuple[type[Any], str], set[str]] = {
    (AlgorithmConfig, "advantage"): set(ADVANTAGES),
    (AlgorithmConfig, "policy_loss"): set(POLICY_LOSSES),
    (AlgorithmConfig, "value_loss"): set(VALUE_LOSSES),
    (AlgorithmConfig, "reduction"): set(get_args(ReductionKind)),
    (KlConfig, "estimator"): set(KL_ESTIMATORS),
    (CorrectionConfig, "kind"): set(CORRECTIONS),
    (SftConfig, "loss_type"): set(SFT_LOSSES),
    (RmConfig, "loss_type"): set(REWARD_LOSSES),
    (DpoConfig, "loss_type"): {*PAIR_LOSSES, *LABEL_LOSSES},
    (DpoConfig, "f_divergence_type"): set(get_args(Divergence)),
    (DataConfig, "format"): {"auto", *ROW_FORMATS},
}


def literals(annotation: Any) -> set[str]:
    """Every text that a `Literal` anywhere inside the annotation allows."""
    parts = get_args(annotation)
    texts = {part for part in parts if isinstance(part, str)}
    return texts.union(*(literals(part) for part in parts if not isinstance(part, str)))


@pytest.mark.parametrize(
    ("place", "names"), NAMES.items(), ids=[f"{cls.__name__}.{field}" for cls, field in NAMES]
)
def test_a_configuration_allows_what_there_is(
    place: tuple[type[Any], str], names: set[str]
) -> None:
    cls, field = place
    assert literals(cls.model_fields[field].annotation) == names


def test_chat_templates_are_those_that_there_are() -> None:
    assert set(CHAT_TEMPLATE_NAMES) == set(CHAT_TEMPLATES)


def test_every_loss_term_can_be_reached() -> None:
    """By the estimators that are allowed in the loss, weighted where that is, and the entropy."""
    reached = {"entropy"}
    for estimator in KL_ESTIMATORS:
        for weighted in (False, True):
            try:
                KlConfig(coefficient=1.0, estimator=estimator, importance_weight=weighted)
            except ValueError:
                continue
            reached.add(f"kl_{estimator}{'_weighted' * weighted}")
    assert reached == set(LOSS_TERMS)

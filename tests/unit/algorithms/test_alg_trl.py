"""Agreement with TRL 1.16.0's own code, which is run, not retyped.

Losses: `GRPOTrainer._compute_loss` on an object made with `__new__`. Advantages and importance
sampling have no function of their own in TRL: their statements are cut out of the trainers' methods
by syntax tree and executed.
"""

import ast
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from alg_batches import make_batch, policy_case, reduction_of
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

trl = pytest.importorskip("trl", minversion="1.16.0")

from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment  # noqa: E402
from trl.trainer import grpo_trainer, rloo_trainer  # noqa: E402
from trl.trainer.utils import entropy_from_logits, selective_log_softmax  # noqa: E402

from rlhf_ray.algorithms import advantages  # noqa: E402
from rlhf_ray.algorithms.advantages import (  # noqa: E402
    AdvantageInputs,
    estimate_advantages,
)
from rlhf_ray.algorithms.correction import (  # noqa: E402
    CORRECTIONS,
    CorrectionInputs,
)
from rlhf_ray.algorithms.logprobs import token_logprobs  # noqa: E402
from rlhf_ray.algorithms.regularizers import LOSS_TERMS, LossTermInputs  # noqa: E402
from rlhf_ray.config.algorithm import AlgorithmConfig, CorrectionConfig  # noqa: E402
from rlhf_ray.config.algorithm_table import RatioLevel, ReductionKind  # noqa: E402
from rlhf_ray.experience import rewards  # noqa: E402

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
# Every sequence has an own token: TRL counts those without in its sequence means, we do not.
MASKS = [
    [True, True, False, True, True],
    [True],
    [True, True, True],
    [True, False, False, True, True, True, True],
    [False, True],
    [True, True, True, True],
]
MAX_LENGTH = 7


def padded(x_T: Tensor, fill: float = 0.0) -> Tensor:
    """[B, L] as TRL has it."""
    rows = x_T.split([len(mask) for mask in MASKS])
    return pad_sequence(list(rows), batch_first=True, padding_value=fill)


def trl_loss(
    loss_type: str,
    logprobs_T: Tensor,
    entropy_T: Tensor,
    batch: Any,
    *,
    level: str = "token",
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.28,
    delta: float | None = None,
    tau_neg: float = 1.05,
    bias_correction: bool = False,
    weights_T: Tensor | None = None,
) -> Tensor:
    """Runs TRL's real `_compute_loss` on the batch."""
    trainer = grpo_trainer.GRPOTrainer.__new__(grpo_trainer.GRPOTrainer)
    trainer.__dict__.update(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        args=SimpleNamespace(
            delta=delta,
            use_bias_correction_kl=bias_correction,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=tau_neg,
            steps_per_generation=1,
        ),
        use_vllm=weights_T is not None,
        vllm_importance_sampling_correction=weights_T is not None,
        _entropy_bonus_enabled=entropy_coef != 0.0,
        use_adaptive_entropy=False,
        entropy_coef=entropy_coef,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_LENGTH,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=False,
            reduce=lambda x, reduction: x,
            gather=lambda x: x,
        ),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (
            padded(logprobs_T),
            padded(entropy_T),
            None,
        ),
    )
    first_token_B = torch.tensor([sum(map(len, MASKS[:i])) for i in range(len(MASKS))])
    inputs = {
        "prompt_ids": torch.zeros(len(MASKS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(MASKS), 1, dtype=torch.long),
        "completion_ids": torch.zeros(len(MASKS), MAX_LENGTH, dtype=torch.long),
        "completion_mask": padded(torch.ones_like(batch.mask_T, dtype=torch.long)),
        "tool_mask": padded(batch.mask_T.long()),
        "advantages": batch.advantages_T[first_token_B],
        "old_per_token_logps": padded(batch.old_logprobs_T),
        "ref_per_token_logps": padded(batch.reference_logprobs_T),
        "num_items_in_batch": batch.mask_T.sum(),
    }
    if weights_T is not None:
        inputs["importance_sampling_ratio"] = padded(weights_T)
    return trainer._compute_loss(trainer.model, inputs)


def value_and_gradient(fn: Callable[[Tensor], Tensor], x_T: Tensor) -> tuple[Tensor, Tensor]:
    leaf_T = x_T.clone().requires_grad_()
    loss = fn(leaf_T)
    return loss.detach(), torch.autograd.grad(loss, leaf_T)[0]


def reducer(kind: ReductionKind, batch: Any) -> Callable[[Tensor], Tensor]:
    reduction = reduction_of(kind, batch.lens_B.tolist(), constant_length=MAX_LENGTH)
    return lambda loss_T: reduction.reduce(loss_T, batch.mask_T, batch.segments_T, batch.lens_B)


def assert_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x_T: Tensor
) -> None:
    got, want = value_and_gradient(ours, x_T), value_and_gradient(theirs, x_T)
    assert want[1].abs().max() > 1e-3, "TRL's gradient is zero: the comparison would prove nothing"
    torch.testing.assert_close(got, want, **CLOSE)


# (ours, our changes of parameters, our reduction, TRL's loss type, TRL's arguments)
POLICY_PAIRS = [
    ("ppo", {"dual_clip": 0.0}, "sequence_mean", "grpo", {}),
    ("ppo", {"dual_clip": 0.0}, "constant", "dr_grpo", {}),
    ("ppo", {"dual_clip": 0.0}, "token_mean", "dapo", {}),
    ("ppo", {"dual_clip": 0.0, "clip_high": 0.2}, "token_mean", "bnpo", {"epsilon_high": 0.2}),
    ("ppo", {"dual_clip": 1.5}, "sequence_mean", "grpo", {"delta": 1.5}),
    ("gspo", {"dual_clip": 0.0}, "sequence_mean", "grpo", {"level": "sequence"}),
    (
        "gspo",
        {"dual_clip": 0.0, "clip_low": 3e-4, "clip_high": 4e-4},
        "sequence_mean",
        "grpo",
        {"level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    # TRL's epsilon_high is CISPO's bound itself, and it has no lower one.
    ("cispo", {"clip_low": 1.0, "clip_high": 0.4}, "token_mean", "cispo", {"epsilon_high": 1.4}),
    # TRL rounds its temperatures to float32: compare with one that float32 can hold.
    ("sapo", {"sapo_temperature_negative": 1.25}, "sequence_mean", "sapo", {"tau_neg": 1.25}),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "changes", "kind", "loss_type", "arguments"), POLICY_PAIRS)
def test_policy_losses(
    name: str,
    changes: dict[str, Any],
    kind: ReductionKind,
    loss_type: str,
    arguments: dict[str, Any],
    seed: int,
) -> None:
    # Sequence ratios of GSPO stay within a few 1e-4 of 1 only for close policies.
    scale = 1e-3 if changes.get("clip_low") == 3e-4 else 1.0
    batch = make_batch(MASKS, seed, torch.float64, scale=scale)
    reduce = reducer(kind, batch)
    assert_same(
        lambda x: reduce(policy_case(name, **changes)(replace(batch, logprobs_T=x)).loss_T),
        lambda x: trl_loss(loss_type, x, batch.entropy_T, batch, **arguments),
        batch.logprobs_T,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_kl_in_the_loss_is_k3(weighted: bool) -> None:
    name = "kl_k3_weighted" if weighted else "kl_k3"
    batch = make_batch(MASKS, 0, torch.float64)
    reduce = reducer("sequence_mean", batch)

    def ours(x: Tensor) -> Tensor:
        inputs = LossTermInputs(
            mask_T=batch.mask_T,
            logprobs_T=x,
            reference_logprobs_T=batch.reference_logprobs_T,
            old_logprobs_T=batch.old_logprobs_T,
            entropy_T=batch.entropy_T,
        )
        return 0.3 * reduce(LOSS_TERMS[name](inputs).loss_T)

    def theirs(x: Tensor) -> Tensor:
        with_kl = trl_loss("grpo", x, batch.entropy_T, batch, beta=0.3, bias_correction=weighted)
        return with_kl - trl_loss("grpo", x, batch.entropy_T, batch)

    assert_same(ours, theirs, batch.logprobs_T)


def test_entropy_bonus() -> None:
    batch = make_batch(MASKS, 0, torch.float64)
    reduce = reducer("token_mean", batch)

    def ours(x: Tensor) -> Tensor:
        inputs = LossTermInputs(
            mask_T=batch.mask_T,
            logprobs_T=batch.logprobs_T,
            reference_logprobs_T=batch.reference_logprobs_T,
            old_logprobs_T=batch.old_logprobs_T,
            entropy_T=x,
        )
        return 0.5 * reduce(LOSS_TERMS["entropy"](inputs).loss_T)

    def theirs(x: Tensor) -> Tensor:
        with_bonus = trl_loss("dapo", batch.logprobs_T, x, batch, entropy_coef=0.5)
        return with_bonus - trl_loss("dapo", batch.logprobs_T, x, batch)

    assert_same(ours, theirs, batch.entropy_T)


def trl_statements(owner: type, method: str, is_first: Callable[[str], bool], count: int) -> Any:
    """Compiles `count` statements of a method, from the first whose source satisfies `is_first`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(owner, method))))
    for node in ast.walk(tree):
        for body in (getattr(node, name, None) for name in ("body", "orelse")):
            for i, statement in enumerate(body if isinstance(body, list) else []):
                if is_first(ast.unparse(statement)):
                    module = ast.Module(body=body[i : i + count], type_ignores=[])
                    return compile(module, inspect.getfile(owner), "exec")
    raise AssertionError(f"{owner.__name__}.{method} has no such statement")


def trl_weights(mode: str, old_T: Tensor, sampling_T: Tensor, mask_T: Tensor, low: float | None):
    """Runs the statements that compute TRL's importance sampling ratio."""
    code = trl_statements(
        grpo_trainer.GRPOTrainer,
        "_generate_and_score_completions",
        lambda s: (
            s.startswith("if self.use_vllm and self.vllm_importance_sampling_correction:\n")
            and "per_token_logps_diff" in s
        ),
        1,
    )
    scope = {
        "self": SimpleNamespace(
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=low,
            vllm_importance_sampling_clip_max=2.0,
        ),
        "completion_mask": padded(torch.ones_like(mask_T, dtype=torch.long)),
        "tool_mask": padded(mask_T.long()),
        "old_per_token_logps": padded(old_T),
        "sampling_per_token_logps": padded(sampling_T),
    }
    exec(code, vars(grpo_trainer), scope)
    return scope["vllm_importance_sampling_ratio"]


@pytest.mark.parametrize(
    ("name", "mode", "low"), [("truncated", "token_truncate", None), ("mask", "token_mask", 0.5)]
)
def test_corrections_and_their_place_in_the_loss(name: str, mode: str, low: float | None) -> None:
    batch = make_batch(MASKS, 0, torch.float64, scale=2.0)
    sampling_T = batch.reference_logprobs_T
    weights_T = CORRECTIONS[name](
        CorrectionInputs(
            old_logprobs_T=batch.old_logprobs_T,
            behaviour_logprobs_T=sampling_T,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            num_sequences=len(batch.lens_B),
            level="token",
        ),
        CorrectionConfig(cap=2.0, low=0.5),
    ).weights_T
    theirs = trl_weights(mode, batch.old_logprobs_T, sampling_T, batch.mask_T, low)
    own = padded(batch.mask_T.long()).bool()
    torch.testing.assert_close(padded(weights_T)[own], theirs[own], **CLOSE)

    reduce = reducer("token_mean", batch)
    case = policy_case("ppo", dual_clip=0.0)
    assert_same(
        lambda x: reduce(weights_T * case(replace(batch, logprobs_T=x)).loss_T),
        lambda x: trl_loss("dapo", x, batch.entropy_T, batch, weights_T=weights_T),
        batch.logprobs_T,
    )


def test_weights_of_a_sequence_are_product_and_geometric_mean_of_its_tokens() -> None:
    """TRL's is the product, for whatever loss; GSPO's own ratio is the mean on both sides."""
    batch = make_batch(MASKS, 0, torch.float64, scale=0.1)
    sampling_T = batch.reference_logprobs_T

    def weights_of(level: RatioLevel) -> Tensor:
        inputs = CorrectionInputs(
            old_logprobs_T=batch.old_logprobs_T,
            behaviour_logprobs_T=sampling_T,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
            num_sequences=len(batch.lens_B),
            level=level,
        )
        return CORRECTIONS["truncated"](inputs, CorrectionConfig(cap=2.0, low=0.5)).weights_T

    products_B1 = trl_weights(
        "sequence_truncate", batch.old_logprobs_T, sampling_T, batch.mask_T, None
    )
    assert products_B1.max() < 2.0, "nothing is truncated"
    means_T = (products_B1[:, 0] ** (1.0 / batch.lens_B.double()))[batch.segments_T]
    own = batch.mask_T
    products_T = products_B1[:, 0][batch.segments_T]
    torch.testing.assert_close(weights_of("sequence")[own], products_T[own], **CLOSE)
    weights_T = weights_of("geometric")
    torch.testing.assert_close(weights_T[own], means_T[own], **CLOSE)

    # With it the first step's ratio is the one that GSPO has to the engine.
    case = policy_case("gspo", dual_clip=0.0, clip_low=None, clip_high=None)
    weighted_T = weights_T * case(batch).loss_T
    to_engine_T = case(replace(batch, old_logprobs_T=sampling_T)).loss_T
    torch.testing.assert_close(weighted_T[own], to_engine_T[own], **CLOSE)


# Four groups of three: two ordinary, one without spread, one of ties.
REWARDS = torch.tensor(
    [0.1, 0.9, -0.4, 1.0, 0.0, 0.0, 0.3, 0.3, 0.3, 2.0, 2.0, -1.0], dtype=torch.float64
)


def our_advantages(name: str) -> Tensor:
    """Sequences of two tokens, the reward on the second."""
    n = len(REWARDS)
    outputs = estimate_advantages(
        name,
        AdvantageInputs(
            token_rewards_T=torch.stack([torch.zeros_like(REWARDS), REWARDS], dim=1).flatten(),
            values_T=None,
            mask_T=torch.ones(2 * n, dtype=torch.bool),
            segments_T=torch.arange(n).repeat_interleave(2),
            groups_B=torch.arange(n) // 3,
        ),
        AlgorithmConfig(advantage=name),
    )
    advantages_BL = outputs.advantages_T.view(n, 2)
    assert torch.equal(advantages_BL[:, 0], advantages_BL[:, 1])
    return advantages_BL[:, 0]


@pytest.mark.parametrize(("name", "scale_rewards"), [("grpo", "group"), ("dr_grpo", "none")])
def test_grpo_advantages(name: str, scale_rewards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advantages, "STD_EPSILON", 1e-4)
    code = trl_statements(
        grpo_trainer.GRPOTrainer,
        "_generate_and_score_completions",
        lambda s: s.startswith("if self.multi_objective_aggregation == 'sum_then_normalize'"),
        2,
    )
    scope = {
        "self": SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards=scale_rewards,
            reward_weights=torch.ones(1, dtype=torch.float64),
        ),
        "rewards_per_func": REWARDS[:, None],
        "unscorable_mask": torch.zeros(len(REWARDS), dtype=torch.bool),
        "num_generations": 3,
        "device": "cpu",
    }
    exec(code, vars(grpo_trainer), scope)
    torch.testing.assert_close(our_advantages(name), scope["advantages"], **CLOSE)


def test_gdpo_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advantages, "STD_EPSILON", 1e-4)
    rng = torch.Generator().manual_seed(0)
    parts = torch.stack([REWARDS, torch.rand(12, generator=rng, dtype=torch.float64).round()], 1)
    parts[[1, 7], [1, 0]] = torch.nan  # these do not apply
    weights = torch.tensor([1.0, 0.3], dtype=torch.float64)
    code = trl_statements(
        grpo_trainer.GRPOTrainer,
        "_generate_and_score_completions",
        lambda s: s.startswith("if self.multi_objective_aggregation == 'sum_then_normalize'"),
        2,
    )
    scope = {
        "self": SimpleNamespace(
            multi_objective_aggregation="normalize_then_sum",
            reward_weights=weights,
            reward_funcs=[None, None],
        ),
        "rewards_per_func": parts,
        "unscorable_mask": parts.isnan().all(dim=1),
        "num_generations": 3,
        "device": "cpu",
    }
    exec(code, vars(grpo_trainer), scope)
    ours = estimate_advantages(
        "gdpo",
        AdvantageInputs(
            token_rewards_T=REWARDS,
            values_T=None,
            mask_T=torch.ones(12, dtype=torch.bool),
            segments_T=torch.arange(12),
            groups_B=torch.arange(12) // 3,
            rewards_BK=parts,
            applies_BK=~parts.isnan(),
            weights_K=weights,
        ),
        AlgorithmConfig(advantage="gdpo"),
    ).advantages_T
    # TRL's correction of the deviation for n - 1 is a float32.
    torch.testing.assert_close(ours, scope["advantages"], rtol=1e-7, atol=1e-12)


def test_rloo_advantages() -> None:
    code = trl_statements(
        rloo_trainer.RLOOTrainer,
        "_generate_and_score_completions",
        lambda s: s.startswith("grouped_rewards = rewards.view(-1, num_generations)"),
        8,
    )
    scope = {
        "self": SimpleNamespace(normalize_advantages=False),
        "rewards": REWARDS,
        "num_generations": 3,
    }
    exec(code, vars(rloo_trainer), scope)
    assert "is_std_zero" not in scope
    torch.testing.assert_close(our_advantages("rloo"), scope["advantages"], **CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy(temperature: float) -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(9, 6), torch.randint(0, 50, (9,))
    head = torch.nn.Linear(6, 50)
    scores = token_logprobs(
        hidden, head, targets, temperature=temperature, chunk_tokens=4, with_entropy=True
    )
    logprobs, entropy = scores.logprobs_T, scores.entropy_T
    logits = head(hidden)
    theirs = selective_log_softmax(logits[None], targets[None], temperature=temperature)[0]
    torch.testing.assert_close(logprobs, theirs)
    torch.testing.assert_close(entropy, entropy_from_logits(logits / temperature))


def test_shaping() -> None:
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [7], [1, 2] * 10, list(range(19)), [3] * 30]
    zeros = torch.zeros(len(ids), dtype=torch.float64)
    theirs = get_repetition_penalty_reward(ngram_size=2, max_penalty=-0.8)(completion_ids=ids)
    ours = rewards.repetition_penalty(zeros, ids, ngram=2, max_penalty=0.8)
    assert ours.tolist() == pytest.approx(theirs)
    assert min(theirs) < -0.5

    theirs = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=4)(
        completion_ids=ids
    )
    ours = rewards.overlong_penalty(
        zeros,
        torch.tensor([len(i) for i in ids]),
        max_length=20,
        buffer_length=4,
        penalty=1.0,
    )
    assert ours.tolist() == pytest.approx(theirs)
    assert set(theirs) >= {0.0, -0.75, -1.0}

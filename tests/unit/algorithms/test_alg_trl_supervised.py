"""Agreement of preference, reward and SFT losses with TRL 1.16.0's own code, which is run.

The trainers are made with `__new__` and given a model that answers with the log-probabilities or
scores of the test. Of TRL's ORPO and CPO trainers (SimPO), `odds_ratio_loss` and `cpo_loss` are
called. What only older TRL has (label smoothing in `sigmoid`) is left to the oracles.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from alg_pairs import (
    PARAMS,
    TRAINED,
    gradient_of,
    make_labelled,
    make_pairs,
    make_rankings,
    with_leaves,
)
from torch import Tensor

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", minversion="1.16.0")

from trl.experimental.cpo.cpo_trainer import CPOTrainer  # noqa: E402
from trl.experimental.orpo.orpo_trainer import ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402
from trl.trainer.reward_trainer import RewardTrainer  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from rlhf_ray.algorithms.metric_sums import values  # noqa: E402
from rlhf_ray.algorithms.preference_losses import (  # noqa: E402
    PAIR_LOSSES,
    LabelledInputs,
    PairInputs,
    kto,
    labelled_metrics,
    pair_metrics,
)
from rlhf_ray.algorithms.supervised_losses import (  # noqa: E402
    REWARD_LOSSES,
    SFT_LOSSES,
    RankingInputs,
    centering,
    reward_metrics,
)
from rlhf_ray.config.algorithm_table import Divergence  # noqa: E402
from rlhf_ray.config.dpo import PreferenceLossConfig  # noqa: E402

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
CLOSE_FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
NOT_IN_DPO_TRAINER = {"simpo", "orpo"}
ACCELERATOR = SimpleNamespace(
    parallelism_config=None,
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
)


def trainer_of(cls: type, **attributes: Any) -> Any:
    """A trainer without a model, a data set or a process group."""
    trainer = cls.__new__(cls)
    trainer.__dict__.update(
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=False),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        **attributes,
    )
    return trainer


def metrics_of(trainer: Any) -> dict[str, float]:
    return {name: v[0] for name, v in trainer._metrics["eval"].items()}


def model_output(logps_B: Tensor, lens_B: Tensor) -> tuple[SimpleNamespace, Tensor]:
    """What TRL's models return for answers of these sums and lengths, and the completion mask.

    A prompt token comes first. Each answer's sum is spread evenly over its tokens.
    """
    places_L = torch.arange(int(lens_B.max()))
    is_token_BL = places_L < lens_B[:, None]
    log_probs_BL = torch.where(is_token_BL, (logps_B / lens_B)[:, None], logps_B.new_zeros(()))
    zeros_BL = torch.zeros_like(log_probs_BL)
    output = SimpleNamespace(
        log_probs=log_probs_BL, entropy=zeros_BL, mean_logits=zeros_BL, is_top1=zeros_BL > 0.0
    )
    return output, torch.cat([torch.zeros(len(lens_B), 1).long(), is_token_BL.long()], dim=1)


def trl_dpo(
    names: list[str], inputs: PairInputs, params: PreferenceLossConfig
) -> tuple[Tensor, Any]:
    """Runs `DPOTrainer._compute_loss` on a batch of chosen and then rejected answers."""
    logps_B = torch.cat([inputs.chosen_logps_B, inputs.rejected_logps_B])
    lens_B = torch.cat([inputs.chosen_lens_B, inputs.rejected_lens_B])
    output, completion_mask = model_output(logps_B, lens_B)
    trainer = trainer_of(
        DPOTrainer,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=params.f_divergence_type,
        f_alpha_divergence_coef=params.f_alpha_divergence_coef,
        loss_types=names,
        loss_weights=[1.0 + i for i in range(len(names))],
        beta=params.beta,
        label_smoothing=params.label_smoothing,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=params.discopop_tau),
    )
    batch = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": inputs.reference_chosen_logps_B,
        "ref_rejected_logps": inputs.reference_rejected_logps_B,
    }
    return trainer._compute_loss(_answering(output), batch, return_outputs=False), trainer


def _answering(output: SimpleNamespace) -> Any:
    def model(**kwargs: Any) -> SimpleNamespace:
        return output

    model.training = False  # type: ignore[attr-defined]
    return model


def our_dpo(names: list[str], inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    loss_B = sum((1.0 + i) * PAIR_LOSSES[name](inputs, params) for i, name in enumerate(names))
    assert isinstance(loss_B, Tensor)
    return loss_B.sum() / inputs.num_pairs


def with_gradients(
    loss: Callable[[PairInputs], Tensor], inputs: PairInputs
) -> tuple[Tensor, list[Tensor]]:
    inputs = with_leaves(inputs)
    value = loss(inputs)
    value.backward()
    gradients = [gradient_of(getattr(inputs, name)) for name in TRAINED]
    assert gradients[0].abs().max() > 1e-3, "without a gradient the comparison would prove nothing"
    return value.detach(), gradients


def trl_params(name: str) -> PreferenceLossConfig:
    """Ours, without what TRL's `sigmoid` no longer has."""
    return PARAMS.model_copy(update={"label_smoothing": 0.0}) if name == "sigmoid" else PARAMS


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - NOT_IN_DPO_TRAINER))
def test_pair_losses(name: str, divergence: Divergence, seed: int) -> None:
    inputs, close = make_pairs(9, seed), CLOSE
    if divergence == "alpha_divergence":  # TRL has it in float32 at most
        floats = [*TRAINED, *(f"reference_{name}" for name in TRAINED)]
        inputs = replace(inputs, **{field: getattr(inputs, field).float() for field in floats})
        close = CLOSE_FLOAT32
    elif name == "exo_pair":  # TRL rounds its label smoothing to float32
        close = {"rtol": 1e-6, "atol": 1e-8}
    params = trl_params(name).model_copy(update={"f_divergence_type": divergence})
    got = with_gradients(lambda x: our_dpo([name], x, params), inputs)
    want = with_gradients(lambda x: trl_dpo([name], x, params)[0], inputs)
    torch.testing.assert_close(got, want, **close)


def test_a_weighted_mix_of_pair_losses() -> None:
    names, inputs = ["hinge", "bco_pair", "sft"], make_pairs(9, 0)
    got = with_gradients(lambda x: our_dpo(names, x, PARAMS), inputs)
    want = with_gradients(lambda x: trl_dpo(names, x, PARAMS)[0], inputs)
    torch.testing.assert_close(got, want, **CLOSE)


def test_pair_metrics() -> None:
    inputs = make_pairs(9, 0)
    theirs = metrics_of(trl_dpo(["hinge"], inputs, PARAMS)[1])
    ours = values(pair_metrics(inputs, PARAMS))
    del ours["clamp_share"]
    assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-6)


def test_simpo() -> None:
    inputs = make_pairs(9, 0)
    trainer = trainer_of(
        CPOTrainer,
        alpha=0.0,
        loss_type="simpo",
        beta=PARAMS.beta,
        simpo_gamma=PARAMS.simpo_gamma,
        label_smoothing=PARAMS.label_smoothing,
    )

    def theirs(x: PairInputs) -> Tensor:
        means = x.chosen_logps_B / x.chosen_lens_B, x.rejected_logps_B / x.rejected_lens_B
        return trainer.cpo_loss(*means)[0].mean()

    got = with_gradients(lambda x: our_dpo(["simpo"], x, PARAMS), inputs)
    torch.testing.assert_close(got, with_gradients(theirs, inputs), **CLOSE)


def test_orpo() -> None:
    inputs = make_pairs(9, 0)
    trainer = trainer_of(ORPOTrainer, beta=PARAMS.beta)

    def theirs(x: PairInputs) -> Tensor:
        means = x.chosen_logps_B / x.chosen_lens_B, x.rejected_logps_B / x.rejected_lens_B
        # TRL's likelihood term covers the prompt too; here it is of the answer alone.
        nll = -x.chosen_logps_B.sum() / x.chosen_lens_B.sum()
        return nll - trainer.odds_ratio_loss(*means)[0].mean()

    got = with_gradients(lambda x: our_dpo(["orpo"], x, PARAMS), inputs)
    # TRL takes the odds in float32.
    torch.testing.assert_close(
        got, with_gradients(theirs, inputs), **CLOSE_FLOAT32, check_dtype=False
    )


def trl_kto(inputs: LabelledInputs, gaps_B: Tensor) -> tuple[Tensor, Any]:
    """Runs `KTOTrainer._compute_loss`; `gaps_B` are log-ratios of the mismatched answers."""
    output, completion_mask = model_output(
        inputs.logps_B, torch.full_like(inputs.desirable_B, 3, dtype=torch.int64)
    )
    trainer = trainer_of(
        KTOTrainer,
        loss_type="kto",
        precompute_ref_logps=True,
        calculate_KL=True,
        beta=PARAMS.beta,
        desirable_weight=PARAMS.desirable_weight,
        undesirable_weight=PARAMS.undesirable_weight,
        _compute_kl_logps=lambda model, batch: gaps_B - 7.0,
    )
    batch = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "label": inputs.desirable_B,
        "ref_logps": inputs.reference_logps_B,
        "ref_KL_logps": torch.full_like(gaps_B, -7.0),
    }
    return trainer._compute_loss(_answering(output), batch, return_outputs=False), trainer


@pytest.mark.parametrize("shift", [-2.0, 1.0])
def test_kto(shift: float) -> None:
    inputs = make_labelled(9, 0)
    gaps_B = torch.randn(9, generator=torch.Generator().manual_seed(0)).double() + shift
    inputs = replace(inputs, mismatch_kl=gaps_B.mean().clamp(min=0.0))
    got_B = inputs.logps_B.clone().requires_grad_()
    want_B = inputs.logps_B.clone().requires_grad_()
    ours = kto(replace(inputs, logps_B=got_B), PARAMS).mean()
    theirs, trainer = trl_kto(replace(inputs, logps_B=want_B), gaps_B)
    (got,), (want,) = torch.autograd.grad(ours, got_B), torch.autograd.grad(theirs, want_B)
    torch.testing.assert_close((ours, got), (theirs, want), **CLOSE)
    metrics = values(labelled_metrics(inputs, PARAMS))
    their_metrics = metrics_of(trainer)
    assert metrics == pytest.approx({name: their_metrics[name] for name in metrics}, rel=1e-9)


@pytest.mark.parametrize("coefficient", [None, 0.3])
@pytest.mark.parametrize("with_margin", [True, False])
def test_reward_loss(with_margin: bool, coefficient: float | None) -> None:
    inputs = make_rankings([2] * 8, 0)
    if not with_margin:
        inputs = replace(inputs, margins_B=torch.zeros_like(inputs.margins_B))
    trainer = trainer_of(
        RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=coefficient)
    )

    def ours(x: RankingInputs) -> Tensor:
        loss_B = REWARD_LOSSES["bradley_terry"](x) + (coefficient or 0.0) * centering(x)
        return loss_B.mean()

    def theirs(x: RankingInputs) -> Tensor:
        logits = torch.cat([x.scores_BK[:, 0], x.scores_BK[:, 1]])[:, None]
        batch = {"margin": x.margins_B} if with_margin else {}
        return trainer.compute_loss(_answering(SimpleNamespace(logits=logits)), batch)

    results = []
    for loss in (ours, theirs):
        scores_BK = inputs.scores_BK.clone().requires_grad_()
        value = loss(replace(inputs, scores_BK=scores_BK))
        results.append((value.detach(), torch.autograd.grad(value, scores_BK)[0]))
    torch.testing.assert_close(results[0], results[1], **CLOSE)
    metrics, trl_metrics = values(reward_metrics(inputs)), metrics_of(trainer)
    assert metrics["accuracy"] == pytest.approx(trl_metrics["accuracy"], rel=1e-6)
    assert metrics["margin"] == pytest.approx(trl_metrics["margin"], rel=1e-9)
    assert metrics["reward_mean"] == pytest.approx(trl_metrics["mean_reward"], rel=1e-9)


@pytest.mark.parametrize("name", sorted(SFT_LOSSES))
def test_sft_loss(name: str) -> None:
    lens_B = torch.tensor([3, 1, 6])
    output, completion_mask = model_output(torch.tensor([-4.0, -0.5, -9.0]).double(), lens_B)
    output.label_mask = completion_mask[:, 1:]
    trainer = trainer_of(
        SFTTrainer,
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type=name, average_tokens_across_devices=False),
    )
    is_trained = output.label_mask.bool()
    logprobs_T = output.log_probs[is_trained].requires_grad_()
    output.log_probs = output.log_probs.clone().requires_grad_()
    ours = SFT_LOSSES[name](logprobs_T).mean()
    theirs = trainer.compute_loss(_answering(output), {"labels": completion_mask})
    (got,) = torch.autograd.grad(ours, logprobs_T)
    (want,) = torch.autograd.grad(theirs, output.log_probs)
    torch.testing.assert_close((ours, got), (theirs, want[is_trained]), **CLOSE)

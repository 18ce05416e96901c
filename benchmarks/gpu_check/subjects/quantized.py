"""A base in 4 bits: what trains on it is what is published, whole and merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu_check.learners import experience, plan_of, policy_learner
from benchmarks.gpu_check.models import device_of
from benchmarks.gpu_check.online import gaps, probes
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.learner.policy import PolicyLearner
from rlhf_ray.learner.weights import named_weights
from rlhf_ray.types import Rollout

# Nats: the same numbers multiplied in bfloat16, in another order.
MEAN_LIMIT, LARGEST_LIMIT = 0.05, 0.5
# By which three steps move a token at least, on average.
LEAST_MOVE = 0.01
STEPS = 3
MODEL = {"quantization": "4bit", "lora": {"rank": 8, "alpha": 32.0}}
# Two a byte.
BYTES_A_WEIGHT = 0.5


def check_4bit(setting: Setting) -> Iterator[Measurement]:
    """Against a plain model in bfloat16 that is made of the published weights."""
    shape = setting.scale.small
    scored = probes(shape)
    rows = experience(shape, prompts=[16] * 16, responses=[112] * 16)
    with policy_learner(setting, shape, model=MODEL, optim={"lr": 3e-3}) as learner:
        yield Measurement(
            name="bytes a weight of the layers",
            value=_bytes_a_weight(learner),
            at_most=BYTES_A_WEIGHT,
        )
        before = _scores(learner, scored)
        skipped = sum(
            learner.update(rows, plan_of(rows, learner.spec.learner), 0.0)["skipped_steps"]
            for _ in range(STEPS)
        )
        yield Measurement(name="skipped steps", value=skipped, at_most=0)
        after = _scores(learner, scored)
        published = _plain_scores(setting, learner, scored)
        yield Measurement(
            name="training moves log-probabilities by",
            value=float(gaps(after, before).mean()),
            unit="nats",
            at_least=LEAST_MOVE,
        )
        distances_T = gaps(after, published)
        for name, value, limit in (
            ("mean", distances_T.mean(), MEAN_LIMIT),
            ("largest", distances_T.max(), LARGEST_LIMIT),
        ):
            yield Measurement(
                name=f"trained and published model differ by, {name}",
                value=float(value),
                unit="nats",
                at_most=limit,
            )


def _bytes_a_weight(learner: PolicyLearner) -> float:
    quantized = [p for p in learner.lm.parameters() if type(p).__name__ == "Params4bit"]
    num = sum(p.quant_state.shape.numel() for p in quantized)
    return sum(p.nbytes for p in quantized) / num if num else float("inf")


def _scores(learner: PolicyLearner, scored: list[Rollout]) -> list[Any]:
    rows = tuple(range(len(scored)))
    return learner.logprobs(scored, ((rows,),), temperature=1.0)


def _plain_scores(
    setting: Setting, learner: PolicyLearner, scored: list[Rollout]
) -> list[np.ndarray[Any, Any]]:
    """By transformers alone."""
    device = device_of(setting.scale)
    config = AutoConfig.from_pretrained(learner.spec.learner.model.path)
    with device:
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    plain.load_state_dict({name: w.clone() for name, w in named_weights(learner.lm)})
    found = []
    for rollout in scored:
        ids = [*rollout.prompt.token_ids_T, *rollout.response_ids_T.tolist()]
        ids_1T = torch.tensor([ids], device=device)
        with torch.no_grad():
            logprobs_TV = plain(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        logprobs_TV = logprobs_TV.log_softmax(-1)
        found.append(logprobs_TV.gather(-1, ids_1T[0, 1:, None])[:, 0].cpu().numpy())
    return found

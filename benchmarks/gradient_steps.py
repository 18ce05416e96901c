"""One optimiser step of each kind of learner on a tiny model, for `benchmarks.gradients`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.learner.build import Spec, engine_builder, make_learner
from rlhf_ray.learner.engine import ParallelDims, StepResult
from rlhf_ray.learner.policy import PolicyLearner
from rlhf_ray.models.sharding import gathered
from rlhf_ray.packing import MinibatchPlan, UpdatePlan
from rlhf_ray.specs import PolicySpec, SupervisedSpec, ValueSpec
from rlhf_ray.types import (
    Experience,
    LabelledAnswer,
    Prompt,
    Ranking,
    Referenced,
    Rollout,
    SftExample,
)

CPU = torch.device("cpu")
NUM_ROWS, VOCABULARY = 12, 61
KL_COEFFICIENT = 0.1
JOBS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sft": (SftConfig, {}),
    "dpo": (DpoConfig, {"rpo_alpha": 0.5}),
    "kto": (DpoConfig, {"loss_type": ["kto"]}),
    "reward": (RmConfig, {"center_rewards_coefficient": 0.1}),
}
LEARNERS = ("policy", "value", *JOBS)


class PlainEngine:
    """A `TrainingEngine` with nothing but PyTorch: the oracle's.

    Attributes:
        gradients: Of the last step, by the names of the parameters.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        """Take the module as it is."""
        self.module, self.dims = module, ParallelDims.of_world()
        self.num_steps = self.num_skipped_in_a_row = 0
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Forward pass."""
        return self.module(*args, **keywords)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Passes without gradients."""
        with torch.no_grad():
            yield

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Autograd's own."""
        loss.backward()

    def step(self) -> StepResult:
        """Keep the gradient, change nothing."""
        trained = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.gradients = {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trained
        }
        self.module.zero_grad()
        norms = [float(gradient.double().norm()) for gradient in self.gradients.values()]
        return StepResult(grad_norm=float(np.linalg.norm(norms)), lr=0.0, applied=True)

    def close(self) -> None:
        """Nothing to release."""


class PlainBuilder:
    """An `EngineBuilder` of the oracle's."""

    shards_weights = False

    def __init__(self, device: torch.device) -> None:
        """Nothing is made before the model is there."""
        self.device = device

    def loading(self) -> AbstractContextManager[None]:
        """As it is."""
        return nullcontext()

    def train(self, module: torch.nn.Module, *, total_steps: int) -> PlainEngine:
        """Without a schedule."""
        return PlainEngine(module)

    def close(self) -> None:
        """Nothing lies outside of the process."""


def save_model(folder: Path) -> Path:
    """A tiny random Llama whose head is its embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


def learner_of(
    name: str, settings: dict[str, Any], *, plain: bool = False, device: torch.device = CPU
) -> Any:
    """A learner, by DeepSpeed or, `plain`, by PyTorch alone, which computes each prompt anew.

    Adapters start with two random factors: as a rule one is 0, and hides the other's gradient.
    """
    config = LearnerConfig.model_validate(
        {
            "max_tokens_per_micro_batch": 4096,
            "logits_chunk_tokens": 16,
            "share_prompts": not plain,
            **settings,
        }
    )
    spec = _spec_of(name, config)
    builder: Any = PlainBuilder(device) if plain else engine_builder(spec, device=device)
    random_adapters = partial(peft.LoraConfig, init_lora_weights=False)
    with mock.patch("peft.LoraConfig", random_adapters):
        return make_learner(spec, builder)


def _spec_of(name: str, config: LearnerConfig) -> Spec:
    common: dict[str, Any] = {"learner": config, "total_steps": 100, "replay_folder": "", "seed": 0}
    if name == "policy":
        kl = {"where": "loss", "coefficient": KL_COEFFICIENT}
        algorithm = {"advantage": "gae", "entropy_coefficient": 0.01, "kl": kl}
        return PolicySpec(
            **common,
            algorithm=AlgorithmConfig.model_validate(algorithm),
            temperature=0.9,
            max_new_tokens=24,
        )
    if name == "value":
        return ValueSpec(**common, algorithm=AlgorithmConfig(advantage="gae"), max_new_tokens=24)
    kind, job = JOBS[name]
    role = "reward" if kind is RmConfig else "policy"
    made = kind.model_validate({"data": {"path": "unused"}, role: config, **job})
    return SupervisedSpec(job=made, total_steps=100, replay_folder="")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimiser step trains on.

    Attributes:
        rows: In the form that the learner takes.
        num_tokens_B: Of each row, that enter the loss.
    """

    rows: Sequence[Any]
    num_tokens_B: Sequence[int]

    def plan(self, num_micro_batches: int, *, by_rank: bool = False) -> UpdatePlan:
        """All rows in one step, cut evenly: `by_rank` among the ranks, else each takes all."""
        num_ranks = dist.get_world_size()
        shares = num_ranks if by_rank else 1
        parts = np.array_split(np.arange(len(self.rows)), num_micro_batches * shares)
        cut = [
            tuple(tuple(part.tolist()) for part in parts[rank::shares]) for rank in range(shares)
        ]
        minibatch = MinibatchPlan(
            micro_batches_by_rank=tuple(cut * (num_ranks // shares)),
            num_tokens=sum(self.num_tokens_B),
            num_sequences=sum(num > 0 for num in self.num_tokens_B),
        )
        return UpdatePlan(minibatches=(minibatch,))

    def update(
        self, learner: Any, num_micro_batches: int, *, by_rank: bool = False
    ) -> dict[str, float]:
        """Take the step."""
        arguments = (KL_COEFFICIENT,) if isinstance(learner, PolicyLearner) else ()
        metrics: dict[str, float] = learner.update(
            self.rows, self.plan(num_micro_batches, by_rank=by_rank), *arguments
        )
        return metrics


def step_of(name: str, plain: Any) -> Step:
    """Random rows for a learner; what they were sampled with is near the weights of `plain`."""
    generator = np.random.default_rng(1)
    rows = _ROWS[name](generator, plain)
    nums_B = [
        int(row.rollout.action_mask_T.sum())
        if isinstance(row, Experience)
        else getattr(row, "row", row).num_trained_tokens
        for row in rows
    ]
    return Step(rows=rows, num_tokens_B=nums_B)


def whole_weights(learner: Any) -> dict[str, torch.Tensor]:
    """Every weight as it takes part in a pass, in float32."""
    parameters = dict(learner.engine.module.named_parameters())
    with gathered(list(parameters.values())):
        return {name: p.detach().float().clone() for name, p in parameters.items()}


def _ids(generator: np.random.Generator, low: int, high: int) -> Any:
    size = generator.integers(low, high)
    return generator.integers(3, VOCABULARY, size=size).astype(np.int32)


def _experiences(
    generator: np.random.Generator, plain: Any, scored: Callable[[list[Rollout]], list[Any]]
) -> list[Experience]:
    """Twelve rows of many lengths, three of a prompt; of some not all tokens are the policy's."""
    rollouts = []
    for number in range(NUM_ROWS):
        draw, sample = divmod(number, 3)
        if sample == 0:
            prompt_T = tuple(_ids(generator, 1, 12).tolist())
        response_T = _ids(generator, 1, 25)
        action_mask_T = np.ones(len(response_T), dtype=np.bool_)
        if number % 3 == 0:
            action_mask_T[1::4] = False
        zeros_T = np.zeros(len(response_T), dtype=np.float32)
        rollout = Rollout(
            prompt=Prompt(prompt_id=f"p{draw}", token_ids_T=prompt_T, text=""),
            draw=draw,
            sample=sample,
            response_ids_T=response_T,
            logprobs_T=zeros_T,
            versions_T=zeros_T.astype(np.int32),
            action_mask_T=action_mask_T,
            finish_reason="stop",
            text="",
        )
        rollouts.append(rollout)
    made = []
    for rollout, scored_T in zip(rollouts, scored(rollouts), strict=True):
        # Rounding must take no token over the edge of a clipped loss, where its gradient jumps.
        sign_T = generator.choice([-1.0, 1.0], size=len(scored_T))
        far_T = generator.choice([0.05, 0.8], size=len(scored_T))
        old_T = (scored_T + sign_T * far_T).astype(np.float32)
        noise_T = generator.normal(0.0, 0.5, size=len(scored_T)).astype(np.float32)
        made.append(
            Experience(
                rollout=replace(rollout, logprobs_T=old_T),
                old_logprobs_T=old_T,
                reference_logprobs_T=scored_T + noise_T,
                values_T=old_T,
                advantages_T=generator.normal(0.0, 1.0, size=len(scored_T)).astype(np.float32),
                returns_T=scored_T + 2.0 * noise_T,
            )
        )
    return made


def _one_pass(rows: Sequence[Any]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return ((tuple(range(len(rows))),),) * dist.get_world_size()


def _policy_rows(generator: np.random.Generator, plain: Any) -> list[Experience]:
    return _experiences(generator, plain, lambda some: plain.logprobs(some, _one_pass(some)))


def _value_rows(generator: np.random.Generator, plain: Any) -> list[Experience]:
    return _experiences(
        generator,
        plain,
        # Without the state after the last token.
        lambda some: [values_T[:-1] for values_T in plain.values(some, _one_pass(some))],
    )


def _examples(generator: np.random.Generator, plain: Any) -> list[SftExample]:
    made = []
    for number in range(NUM_ROWS):
        ids_T = _ids(generator, 3, 30)
        trained_T = ids_T % 3 > 0
        trained_T[0] = False  # nothing predicts it
        made.append(SftExample(example_id=f"e{number}", token_ids_T=ids_T, trained_T=trained_T))
    return made


def _rankings(generator: np.random.Generator, plain: Any) -> list[Ranking]:
    return [
        Ranking(
            example_id=f"r{number}",
            prompt_ids_T=_ids(generator, 1, 9),
            answer_ids_K=(_ids(generator, 2, 14), _ids(generator, 2, 14)),
            margin=0.3 * (number % 3),
        )
        for number in range(NUM_ROWS)
    ]


def _pairs(generator: np.random.Generator, plain: Any) -> list[Referenced]:
    rows = [replace(row, margin=0.0) for row in _rankings(generator, plain)]
    referenced = [Referenced(row=row, reference_logps_K=(0.0, 0.0)) for row in rows]
    outcome = plain._sums(referenced, _one_pass(referenced), slice(0, 2)).tolist()
    return [
        Referenced(row=row, reference_logps_K=tuple(sums + generator.normal(0.0, 3.0, size=2)))
        for row, sums in zip(rows, outcome, strict=True)
    ]


def _labelled(generator: np.random.Generator, plain: Any) -> list[Referenced]:
    made = []
    for number, pair in enumerate(_pairs(generator, plain)):
        answer_ids_T, other_ids_T = pair.row.answer_ids_K
        row = LabelledAnswer(
            example_id=pair.row.example_id,
            prompt_ids_T=pair.row.prompt_ids_T,
            answer_ids_K=(answer_ids_T, other_ids_T),
            desirable=number % 3 > 0,
        )
        # Unlikely in the reference, so that KTO's reference point is well above its bound of 0.
        kept, mismatched = pair.reference_logps_K
        made.append(Referenced(row=row, reference_logps_K=(kept, mismatched - 4.0)))
    return made


_ROWS: dict[str, Callable[[np.random.Generator, Any], Sequence[Any]]] = {
    "policy": _policy_rows,
    "value": _value_rows,
    "sft": _examples,
    "dpo": _pairs,
    "kto": _labelled,
    "reward": _rankings,
}

"""What every trained role's learner does beside its own loss."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.learner.rows import fitted_update, flat, rollout_batch
from rlhf_ray.learner.update import MicroBatchLoss, Preparation, UpdateSettings, run_update
from rlhf_ray.models.batch import TokenBatch
from rlhf_ray.models.check import own_outcome, sample_row, settle
from rlhf_ray.models.kernels import compile_layers
from rlhf_ray.models.modes import CheckedModel
from rlhf_ray.own_rows import OtherRow
from rlhf_ray.packing import MinibatchPlan, RankedMicroBatches, UpdatePlan
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.specs import Job, PolicySpec, SupervisedSpec, ValueSpec
from rlhf_ray.types import Experience, Ranking, Referenced, SftExample

logger = logging.getLogger(__name__)

# The last of several numbers in a name: which expert of a layer, say.
_MEMBER = re.compile(r"(?<=\.)\d+(?=\.(?:[^.\d]+\.)*[^.\d]+$)")


class Learner(ABC):
    """One rank's share of a trained role.

    Attributes:
        model: What the engine trains.
        engine: What holds it.
    """

    model: CheckedModel

    def __init__(
        self,
        config: LearnerConfig,
        builder: EngineBuilder,
        settings: UpdateSettings,
        *,
        total_steps: int,
        seed: int,
    ) -> None:
        """Load the model, hand it to an engine, and let it run as it is right.

        Raises:
            ConfigError: It cannot be loaded, does not agree with itself, or what should train
                cannot.
        """
        torch.manual_seed(seed)
        self.config, self.builder, self.device = config, builder, builder.device
        self._settings = settings
        with builder.loading():
            self.model = self._load()
        self.model.device = self.device
        if not builder.shards_weights:
            settle_unreached(self.model, is_sharded=False)
        self.engine = builder.train(self.model.train(), total_steps=total_steps)
        if builder.shards_weights:
            settle_unreached(self.model, is_sharded=True)
        settle(self.model, config, self.device)
        if config.compile:
            compile_layers(self.model)

    @abstractmethod
    def _load(self) -> Any:
        """The model as the configuration has it."""

    def _update(
        self,
        rows: Sequence[Any],
        lengths_B: Sequence[int],
        plan: UpdatePlan,
        loss_of: MicroBatchLoss,
        prepare: Preparation | None = None,
    ) -> dict[str, float]:
        """Take every optimiser step of a plan; see `run_update`."""
        plan = fitted_update(plan, lengths_B, self.config, self.model)
        return run_update(self.engine, rows, plan, loss_of, self._settings, prepare=prepare)

    def save(self, folder: Path) -> None:
        """Write everything that training goes on from."""
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.engine.load(folder)

    def close(self) -> None:
        """Release the model."""
        self.engine.close()
        self.builder.close()


class ExperienceLearner(Learner):
    """One rank's share of what learns from rollouts: the policy, or its critic."""

    spec: PolicySpec | ValueSpec

    def __init__(self, spec: PolicySpec | ValueSpec, builder: EngineBuilder) -> None:
        """Load the model and hand it to an engine."""
        self.spec = spec
        super().__init__(
            spec.learner,
            builder,
            UpdateSettings(
                reduction=spec.algorithm.reduction,
                constant_length=spec.max_new_tokens,
                replay_folder=spec.replay_folder,
            ),
            total_steps=spec.total_steps,
            seed=spec.seed,
        )

    def _update_on(
        self, rows: Sequence[Experience | OtherRow], plan: UpdatePlan, loss_of: MicroBatchLoss
    ) -> dict[str, float]:
        return self._update(rows, [row.num_tokens for row in rows], plan, loss_of)

    def _batch(self, rows: Sequence[Experience]) -> TokenBatch:
        return rollout_batch([row.rollout for row in rows], self.model)

    def _floats(self, rows: Sequence[Experience], name: str) -> Tensor:
        """A field of all rows, or `rollout.` and one of their rollouts: float32 [T].

        Of own tokens alone, end to end, as `_batch` scores them.
        """
        field = attrgetter(name)
        return flat(
            rows,
            lambda row: field(row)[row.rollout.action_mask_T],
            dtype=torch.float32,
            device=self.device,
        )


def settle_unreached(module: CheckedModel, *, is_sharded: bool) -> None:
    """Take out of training what the model's code leaves out of what the role reads, and say so.

    Towers for images see no token, biases that balance experts and indexers of attention have no
    gradient; some families read a matrix without calling its layer, so that an adapter there does
    nothing. Under ZeRO-3 there are no whole weights before DeepSpeed's start, and after it nothing
    can be taken out: there it is refused.

    Raises:
        ConfigError: Nothing would be left, or it cannot be taken out any more.
    """
    unreached = _unreached(module)
    if not unreached:
        return
    names = ", ".join(list(unreached)[:5])
    more = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
    fault = f"{type(module.transformer()).__name__} computes nothing with {names}{more}"
    if is_sharded:
        raise ConfigError(
            f"{fault}: under ZeRO stage 3 set model.lora.target_modules to other layers, or take "
            "zero.stage 2, which leaves them as they are"
        )
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"nothing can be trained: {fault}")
    logger.warning("%s: they stay as they are", fault)


def _unreached(module: CheckedModel) -> dict[str, nn.Parameter]:
    """Parameters under training that nothing which the role reads is computed from."""
    was_training = module.training
    module.eval()
    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        outcome = own_outcome(module, sample_row(module))
    module.train(was_training)
    reached = {id(leaf) for leaf in _leaves(outcome)}
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    # An expert that no token went to has others of its kind beside it.
    kinds = {_kind(name) for name, parameter in trained if id(parameter) in reached}
    return {n: p for n, p in trained if id(p) not in reached and _kind(n) not in kinds}


def _kind(name: str) -> str:
    several = sum(part.isdigit() for part in name.split(".")) > 1
    return _MEMBER.sub("*", name) if several else name


def _leaves(outcome: Tensor) -> Iterator[Tensor]:
    """The tensors that gradients of the outcome would arrive at; nothing is computed."""
    pending, seen = [outcome.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            yield leaf
        pending += [before for before, _ in node.next_functions]


Row = TypeVar("Row", bound=SftExample | Ranking | Referenced)


class ExampleLearner(Learner, Generic[Job, Row]):
    """One rank's share of a model that learns from the rows of a data set."""

    model: Any  # one with an `lm`: a `TokenScorer` or a `RewardModel`

    def __init__(self, spec: SupervisedSpec[Job], builder: EngineBuilder) -> None:
        """Load the model and hand it to an engine.

        Raises:
            ConfigError: It cannot be loaded, has no experts to balance, or does not agree with
                itself.
        """
        self.spec, self.job = spec, spec.job
        super().__init__(
            spec.job.learner,
            builder,
            UpdateSettings(
                reduction="token_mean", constant_length=None, replay_folder=spec.replay_folder
            ),
            total_steps=spec.total_steps,
            seed=spec.job.seed,
        )

    @property
    def lm(self) -> Any:
        """The transformers model, perhaps with adapters: only peft knows how to switch them off."""
        return self.model.lm

    def update(self, rows: Sequence[Row], plan: UpdatePlan) -> dict[str, float]:
        """One optimiser step a minibatch of the plan."""
        lengths_B = [row.num_tokens for row in rows]
        return self._update(rows, lengths_B, plan, self._loss, partial(self._prepare, rows))

    @abstractmethod
    def evaluate(self, rows: Sequence[Row], plan: RankedMicroBatches) -> Evaluated:
        """Metrics and outcomes of held-out rows; all ranks call it alike."""

    @abstractmethod
    def _loss(self, rows: Sequence[Any], reduction: Reduction) -> tuple[torch.Tensor, MetricSums]:
        """Of one micro-batch; see `run_update`."""

    def _prepare(
        self, rows: Sequence[Row], minibatch: MinibatchPlan
    ) -> Sequence[Any] | Mapping[int, Any]:
        """What one optimiser step trains on, by the rows' numbers: here the rows as they are."""
        return rows

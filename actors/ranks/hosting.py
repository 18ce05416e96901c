"""What every rank with a model does: host what a specification describes, train it, pass it on."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.cluster.role_spec import control
from actors.ranks.rank import Rank, free_memory, free_pinned_memory
from actors.weights.held_model import HeldModel, in_reach, put_share
from rlhf_ray.disk import room_for
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.roles.reports import Evaluated, Hardware, Metrics
from rlhf_ray.types import LabelledAnswer, Ranking

if TYPE_CHECKING:
    from rlhf_ray.learner.engine import EngineBuilder, Residency


class HostingRank(Rank):
    """Base of the rank actors that hold a model: any of them hosts any learner.

    What is hosted may be on the host instead of the rank's device (`offload`). Whatever needs it
    brings it back, as far as it needs it: weights to read, all of it to train.

    Attributes:
        learner: What is hosted; None before the first `load`.
        residency: Where it is.
        learner_path: Where other roles find the learner's result, once it was kept.
        builder: Brought it into its engine, and removes what that leaves outside of the process.
        kept: References to what this rank put into the object store, by the models' paths. They
            are held here as well, because whoever asked for them may die.
    """

    learner: Any = None
    residency: Residency | None = None
    learner_path: str = ""
    builder: EngineBuilder | None = None

    def __init__(self, *arguments: Any) -> None:
        """As any rank."""
        super().__init__(*arguments)
        self.kept: dict[str, list[Any]] = {}

    def import_libraries(self) -> None:
        """What a learner needs, before there is one: 10 seconds and more on a small machine."""
        importlib.import_module("rlhf_ray.learner.build")

    @recorded
    def load(self, spec: Any, held: Sequence[HeldModel] = ()) -> None:
        """Host the learner that `spec` describes, in place of the one before; `held` are in memory.

        Raises:
            ConfigError: The model cannot be loaded as configured.
        """
        from rlhf_ray.learner.build import engine_builder, make_learner
        from rlhf_ray.learner.weights import require_mergeable

        self.unload()
        self.builder = engine_builder(spec, device=self.device)
        with in_reach(held, timeout_s=self.fetch_timeout_s):
            self.learner = make_learner(spec, self.builder)
        self.residency = self.learner.engine.residency
        if hasattr(self.learner, "lm"):  # before any training; a critic stays where it is
            require_mergeable(self.learner.lm)
        free_memory()  # of reading and spreading weights

    @recorded
    def unload(self) -> None:
        """Release the model that is held, before another takes its memory."""
        if self.learner is not None:
            self.learner.close()
        self.learner, self.learner_path, self.residency = None, "", None
        self._clean_up()
        free_memory()
        free_pinned_memory()  # what the model lay in while it was on the host; others need it next

    def offload(self, *, keep_weights: bool = False) -> None:
        """Leave the device to others; with `keep_weights` only what training needs leaves."""
        if self.residency is not None:
            with span("offload"):
                self.residency.offload(keep_weights=keep_weights)
                free_memory()

    def _to_read(self) -> Any:
        """The learner, with its weights on the device."""
        if self.residency is not None and not self.residency.has_weights:
            with span("reload"):
                self.residency.reload(weights_only=True)
        return self.learner

    def _to_train(self) -> Any:
        """The learner, with all that it has on the device."""
        if self.residency is not None and not self.residency.has_states:
            with span("reload"):
                self.residency.reload()
        return self.learner

    @control
    def stop(self) -> None:
        """Leave nothing behind; the process is ended next."""
        self._clean_up()

    def _clean_up(self) -> None:
        if self.builder is not None:
            self.builder.close()
        self.builder = None

    @recorded
    def update(self, rows: Sequence[Any], plan: UpdatePlan, *coefficients: float) -> Metrics:
        """Every optimiser step of a plan."""
        metrics: Metrics = self._to_train().update(rows, plan, *coefficients)
        return metrics

    @recorded
    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """What the reference says of each answer of this rank's rows, in the order of the plan."""
        logps: list[tuple[float, ...]] = self._to_read().answer_logps(rows, plan)
        return logps

    @recorded
    def evaluate(self, rows: Sequence[Any], plan: RankedMicroBatches) -> Evaluated | None:
        """What held-out rows show; all ranks know, the first one says it."""
        evaluated: Evaluated = self._to_read().evaluate(rows, plan)
        free_memory()  # its passes are other than those of training, which cannot reuse their room
        return evaluated if self.rank == 0 else None

    @recorded
    def score_answers(
        self, rows: Sequence[Ranking], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """Scores by the reward model in training, of all rows' answers on every rank."""
        scores: list[tuple[float, ...]] = self._to_read().scores(rows, plan)
        return scores

    @recorded
    def continuations(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_ids: Sequence[int]
    ) -> list[list[int]]:
        """What the model writes after each prompt, greedily."""
        written: list[list[int]] = self._to_read().continuations(
            prompts, max_new_tokens=max_new_tokens, end_ids=end_ids
        )
        return written

    def hardware(self) -> Hardware:
        """What the utilisation of this rank's device is counted from."""
        import torch

        from rlhf_ray.learner.work import update_flops

        on_gpu = self.device.type == "cuda"
        return Hardware(
            flops=update_flops(self.learner.lm),
            device_name=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            num_devices=self.num_ranks,
            shares_prompts=self.learner.model.mode.shares_prompts,
        )

    @recorded
    def save(self, folder: str) -> None:
        """Write what training goes on from."""
        with room_for("a checkpoint", Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)  # a rank's node may have its own disk
            self._to_train().save(Path(folder))

    @recorded
    def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        self._to_train().load(Path(folder))

    @recorded
    def export(self, folder: str, tokenizer_path: str) -> None:
        """Write the model in the transformers layout, adapters merged."""
        from rlhf_ray.learner.export import export_model

        with room_for("the model", Path(folder)):
            lm = self._to_read().lm
            export_model(lm, Path(folder), tokenizer_path, write=self.rank == 0)

    def describe(self, folder: str, tokenizer_path: str) -> None:
        """Write configuration and tokenizer without the weights."""
        from rlhf_ray.learner.export import export_description

        if self.rank == 0:
            export_description(self.learner.lm, Path(folder), tokenizer_path)

    @recorded
    def keep(self, folder: str) -> list[Any]:
        """Leave the weights in the object store, for whoever loads a model from `folder`."""
        lm = self._to_read().lm
        self.kept[folder] = put_share(lm, rank=self.rank, num_ranks=self.num_ranks)
        self.learner_path = folder
        return self.kept[folder]

    def drop(self, folder: str) -> None:
        """Free what `keep` put there."""
        self.kept.pop(folder, None)

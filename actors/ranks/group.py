"""A group of ranks as the pool and the loop see it; what every trained role's group does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from actors.cluster.role_handle import RoleHandle, put
from actors.cluster.role_spec import RoleSpec
from actors.cluster.run_files import RunFiles, or_death
from actors.ranks.forward import by_row, over_rows
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import Rank
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.learners import ForwardConfig, LearnerConfig
from rlhf_ray.errors import ActorDied, RunError
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.roles.groups import Ref
from rlhf_ray.roles.reports import Evaluated, Hardware, Metrics
from rlhf_ray.types import LabelledAnswer, Ranking

R = TypeVar("R", bound=HostingRank)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RankSpec(RoleSpec):
    """Ranks in one process group, on GPUs in turn with others, or on CPUs."""

    async def join(
        self,
        role: RoleHandle[Any],
        *,
        new: Sequence[int],
        on_gpu: bool,
        timeouts: TimeoutConfig,
    ) -> None:
        """Make the ranks one process group."""
        start_s = timeouts.start_s
        [(host, port)] = await role.call(Rank.open_store, only=0, timeout_s=start_s)(start_s)
        refs = [
            role.start(Rank.join, rank)(rank, len(role), host, port, timeouts.call_s, on_gpu)
            for rank in range(len(role))
        ]
        await role.answers(refs, "join", timeout_s=start_s)

    async def broken(self, role: RoleHandle[Any]) -> Sequence[int]:
        """All of them: a process group cannot take a new rank."""
        return range(len(role))


@dataclass(kw_only=True, eq=False)
class RankGroup(Generic[R]):
    """A role on a group of ranks that host its model, as the loop asks it.

    Attributes:
        actors: The ranks.
        timeouts: Of every call.
        leaves: Whether they live on the engines' GPUs.
    """

    actors: RoleHandle[R]
    timeouts: TimeoutConfig
    leaves: bool = False

    async def offload(self) -> None:
        """Leave the engines' GPUs for the host; nothing where these are not theirs."""
        if self.leaves:
            await self.actors.call(HostingRank.offload, timeout_s=self.timeouts.call_s)()


@dataclass(kw_only=True, eq=False)
class TrainedGroup(RankGroup[R]):
    """A rank group whose ranks hold a learner.

    Attributes:
        config: Of the learner.
        files: How what the ranks write comes to the driver, where its folders are not theirs; asked
            for each time, as ranks whose node is lost come up on another one.
        exports_with: The tokenizer of the model that `save` exports as well; else empty.
    """

    config: LearnerConfig
    files: Callable[[], RunFiles] = RunFiles
    exports_with: str = ""

    async def _update(self, rows: Ref, plan: UpdatePlan, *coefficients: float) -> Metrics:
        """Every optimiser step of a plan; what only training needs leaves shared GPUs with it.

        Another role that trains there has no room for its own beside.
        """
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            update = self.actors.call(HostingRank.update, timeout_s=call_s)
            metrics = await update(rows, plan, *coefficients)
            if self.leaves:
                await self.actors.call(HostingRank.offload, timeout_s=call_s)(keep_weights=True)
        return metrics[0]

    async def hardware(self) -> Hardware:
        """What the role's utilisation is counted from."""
        start_s = self.timeouts.start_s
        [hardware] = await self.actors.call(HostingRank.hardware, only=0, timeout_s=start_s)()
        return hardware

    async def save(self, folder: str) -> None:
        """Write this role's trained state below `folder`, on the driver's machine as well.

        An export goes to `export` beside it.

        Raises:
            ActorDied: A rank is dead, or its node is gone.
        """
        call_s = self.timeouts.call_s
        await self._clear(folder)  # what a run that broke off may have left there
        await self.actors.call(HostingRank.save, timeout_s=call_s)(folder)
        await self._or_death(self.files().fetch(folder))
        await self._clear(folder)
        if self.exports_with:
            beside = str(Path(folder).with_name("export"))
            await self._or_death(
                self.files().export(self.actors, beside, self.exports_with, timeout_s=call_s)
            )
            await self._clear(beside)
        await self.offload()

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote.

        Raises:
            ActorDied: A rank is dead, or its node is gone.
        """
        await self._or_death(self.files().send(folder))
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            await self.actors.call(HostingRank.restore, timeout_s=call_s)(folder)
        await self.offload()
        await self._clear(folder)

    async def _clear(self, folder: str) -> None:
        """Remove what the nodes hold of a folder; once more where that fails and all are alive."""
        try:
            await self._or_death(self.files().clear(folder))
        except ActorDied:
            raise
        except RunError:
            await self._or_death(self.files().clear(folder))

    async def _or_death(self, work: Awaitable[None]) -> None:
        await or_death(self.actors, work, hang_s=self.timeouts.hang_s)


async def answer_logps(
    ranks: RoleHandle[Any],
    rows: Sequence[Ranking | LabelledAnswer],
    config: ForwardConfig,
    *,
    timeout_s: float,
) -> list[tuple[float, ...]]:
    """What the reference that ranks hold says of each of a row's answers; in row order."""
    score = HostingRank.answer_logps
    return by_row(*await over_rows(ranks, score, rows, config, timeout_s=timeout_s))


class SupervisedGroup(TrainedGroup[Any]):
    """Learns from rows of a data set: SFT and DPO on the policy's ranks, or a reward model."""

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        """One optimiser step a minibatch of the plan."""
        return await self._update(put(list(rows)), put(plan))

    async def evaluate(self, rows: Sequence[Any]) -> Evaluated:
        """Metrics and outcomes of held-out rows."""
        [evaluated, *_] = await self._forward(HostingRank.evaluate, rows)
        assert evaluated is not None
        return evaluated

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> Sequence[tuple[float, ...]]:
        """Of a policy without its adapter: log-probabilities (nats) of each row's answers."""
        return await answer_logps(self.actors, rows, self.config, timeout_s=self.timeouts.call_s)

    async def score_answers(self, rows: Sequence[Ranking]) -> Sequence[tuple[float, ...]]:
        """The scores that a reward model in training gives each row's answers."""
        [scores, *_] = await self._forward(HostingRank.score_answers, rows)
        return scores

    async def _forward(
        self, method: Callable[[Any, Sequence[Any], RankedMicroBatches], T], rows: Sequence[Any]
    ) -> list[T]:
        """Each rank's answer about all rows."""
        call_s = self.timeouts.call_s
        _, answers = await over_rows(self.actors, method, rows, self.config, timeout_s=call_s)
        return answers

    async def continuations(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Sequence[int]
    ) -> list[list[int]]:
        """What the model writes after each prompt, greedily, up to an end token."""
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            write = self.actors.call(HostingRank.continuations, timeout_s=call_s)
            [written, *_] = await write(list(prompts), max_new_tokens, end_ids)
        return written

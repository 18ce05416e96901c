"""Reward functions and remote scorers, which need no GPU: a process without a group."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleActor, RoleSpec
from actors.ranks.rank import Rank
from actors.weights.held_model import HeldModel
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.errors import FailureCause
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.roles.groups import Ref, SampleId
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Rollout

# Groups whose async functions and requests are waited for at a time.
SIDE_BY_SIDE = 16
# With a group of plain functions, and calls that nobody waits for any more.
CALLS_AT_A_TIME = 2 * SIDE_BY_SIDE
_HEALTH_S = 2.0


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(RoleSpec):
    """Workers, each by itself."""

    max_calls: int | None = CALLS_AT_A_TIME
    runs_user_code: bool = True

    async def broken(self, role: RoleHandle[Any]) -> Sequence[int]:
        """Those that are dead; others may just work, and go on with it."""
        asked = [role.start(RoleActor.health, index)() for index in range(len(role))]
        dead = await side_by_side(map(_is_dead, asked))
        return [index for index, is_dead in enumerate(dead) if is_dead]


async def _is_dead(health: Awaitable[Any]) -> bool:
    try:
        async with asyncio.timeout(_HEALTH_S):
            await health
    except TimeoutError:
        return False
    except RayError:
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class LoadedFunctions:
    """What a worker loaded.

    Attributes:
        weights: Each function's factor in the sum, by its name.
        plain: Names of those that score one after the other.
    """

    weights: Mapping[str, float]
    plain: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What a worker says of a group that could not be scored.

    Attributes:
        message: Names the scorer and the group.
    """

    cause: FailureCause
    message: str


class RewardWorker(Rank):
    """One process without a group; user code runs here, and in processes that it starts.

    Its calls are answered in threads, each of which waits for an event loop beside them. No
    coroutine may be a method here: Ray would then run every method in an event loop.
    """

    scorers: Any = None
    loop: asyncio.AbstractEventLoop | None = None

    def import_libraries(self) -> None:
        """What scoring needs, before there is anything to score."""
        importlib.import_module("rlhf_ray.rewards.scorers")

    @recorded
    def load(self, spec: RewardSpec, held: Sequence[HeldModel] = ()) -> LoadedFunctions:
        """Make the functions and the remote scorer.

        Raises:
            ConfigError: One of them cannot be loaded.
        """
        from rlhf_ray.rewards.scorers import Scorers

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, name="scorers", daemon=True).start()
        self.scorers, self.seed = Scorers(spec), spec.seed
        functions = self.scorers.functions.values()
        return LoadedFunctions(
            weights={function.name: function.weight for function in functions},
            plain=tuple(function.name for function in functions if not function.is_async),
        )

    def score(
        self,
        names: Sequence[str],
        refs: Sequence[Ref],
        samples_G: Sequence[SampleId],
        timeout_s: float,
    ) -> dict[str, list[float | None]] | Failed:
        """What the scorers of these names say of a group's samples: name -> one value a sample.

        One that fails is no error: the caller decides what becomes of the group, for which there is
        never a reward of 0. After `timeout_s` nobody waits for it.
        """
        from rlhf_ray.rewards.batch import RewardError

        assert self.loop is not None, "scorers must be loaded"
        draw, _ = samples_G[0]
        with span("score", draw=draw, scorers=list(names)):
            rollouts = self.fetch(refs, draw=draw)
            rollouts_G = [rollouts[sample] for sample in samples_G]
            scoring = self.scorers.score(self._seeds(names, rollouts_G[0]), rollouts_G)
            values = asyncio.run_coroutine_threadsafe(scoring, self.loop)
            try:
                found: dict[str, list[float | None]] = values.result(timeout=timeout_s)
            except RewardError as error:
                return Failed(cause=error.cause, message=str(error))
            except TimeoutError:
                where = f"draw {draw}, prompt {rollouts_G[0].prompt.prompt_id!r}"
                return Failed(cause="hung", message=f"no scores within {timeout_s:g} s ({where})")
            finally:
                values.cancel()
            return found

    def _seeds(self, names: Sequence[str], first: Rollout) -> dict[str, int]:
        """A function that draws random numbers draws the same ones for the same group.

        So a resumed run scores as the undisturbed one, in whatever order groups come. An
        evaluation, whose draws are those of no training, has the same numbers every time.
        """
        return {
            name: sample_seeds(
                seed=self.seed,
                draw=f"reward/{name}/{first.draw}",
                prompt_id=first.prompt.prompt_id,
                num_samples=1,
            )[0]
            for name in names
        }

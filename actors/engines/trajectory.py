"""An engine that acts in environments: the loop of a rollout's turns, beside the engine.

Tokens go in and come out: a turn is asked with the ids so far. The user's code runs in workers.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from actors.engines.acting import Acting, RemoteEnvironment
from actors.engines.samples import Ending, sampled_turn, sampling_params
from actors.engines.sampling import SAMPLE, Sampling, SamplingEngine
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.environments.play import Limits, SampledTurn, play
from rlhf_ray.environments.transcript import Transcript
from rlhf_ray.environments.turns import TurnTemplate
from rlhf_ray.errors import GroupFailed
from rlhf_ray.metrics.spans import span
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.seeds import environment_seed, turn_seed
from rlhf_ray.types import Rollout


class ActingEngine(SamplingEngine):
    """Base of the actor around one of vLLM's engines: the part that acts in environments."""

    # By the chat template, for the event loop alone: others read texts in threads.
    _tokenizers: dict[str, Any]

    def __init__(self, name: str) -> None:
        """As any engine."""
        super().__init__(name)
        self._tokenizers = {}

    async def _group(
        self,
        group: Sampling,
        collectors: Mapping[str, Any],
        ending: Ending,
        timeout_s: float,
    ) -> list[Rollout]:
        """As of any engine; in an environment the requests are those of first turns.

        Raises:
            GroupFailed: An environment failed, or all turns together were late. That is said while
                whoever asked still waits: the engine is well, and must not be killed for it.
        """
        acting = group.acting
        if acting is None:
            return await super()._group(group, collectors, ending, timeout_s)
        draw, most_s = group.request.draw, timeout_s - acting.closing_s
        try:
            with span("act", draw=draw):
                async with _turns_within(most_s, group.request, acting.limits):
                    return await side_by_side(
                        self._rollout(group, sample, acting, first, ending, timeout_s)
                        for sample, first in enumerate(collectors.items())
                    )
        except Exception:
            await self._end(group.request_ids)
            raise

    async def _rollout(
        self,
        group: Sampling,
        sample: int,
        acting: Acting,
        first: tuple[str, Any],
        ending: Ending,
        timeout_s: float,
    ) -> Rollout:
        """One sample, all turns; its first one is asked for already, as `first`."""
        request = group.request
        prompt, num_samples = request.prompt, len(request.seeds_G)
        seed, num_turns = request.seeds_G[sample], 0

        async def turn(ids_T: list[int], most: int) -> SampledTurn:
            nonlocal num_turns
            collectors = dict([first])
            if num_turns:
                params = sampling_params(
                    replace(request, max_new_tokens=most), turn_seed(seed, num_turns), ending
                )
                collectors = await self._next(group, ids_T, params, timeout_s)
            num_turns += 1
            [output] = await self._finished(collectors, timeout_s=timeout_s)
            return sampled_turn(prompt.prompt_id, output.outputs[0])

        worker = acting.worker_of(request.draw, sample, num_samples)
        return await play(
            RemoteEnvironment(worker, draw=request.draw, sample=sample),
            turn,
            Transcript(
                prompt=prompt,
                draw=request.draw,
                sample=sample,
                max_new_tokens=request.max_new_tokens,
                max_tokens=acting.max_tokens,
            ),
            TurnTemplate(
                tokenizer=self._tokenizer_with(acting.chat_template),
                end_ids=acting.end_ids,
                options=template_options(prompt.columns, prompt.prompt_id, tools=acting.tools),
            ),
            acting.limits,
            seed=environment_seed(request.seeds_G),
        )

    async def _next(
        self, group: Sampling, ids_T: list[int], params: Any, timeout_s: float
    ) -> dict[str, Any]:
        """Ask for a turn behind others, by the request's name.

        Not amid an exchange of weights: what older ones made of these tokens must not be found by
        whoever asks the newer ones (see `_add`).
        """
        request_id = self._new_name(group.request.prompt.prompt_id)
        group.request_ids.append(request_id)
        try:
            async with self.scheduling("a turn", timeout_s):
                adding = self._add(
                    request_id, ids_T, params, SAMPLE, wave=group.wave, timeout_s=timeout_s
                )
                return {request_id: await adding}
        except BaseException:  # also where the group is dropped meanwhile
            await self._end([request_id])
            raise

    def _tokenizer_with(self, chat_template: str) -> Any:
        if chat_template not in self._tokenizers:
            made = copy.deepcopy(self.tokenizer)
            made.chat_template = chat_template
            self._tokenizers[chat_template] = made
        return self._tokenizers[chat_template]


@asynccontextmanager
async def _turns_within(
    most_s: float, request: GenerationRequest, limits: Limits
) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(most_s) as timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise  # of something inside
        raise GroupFailed.of(
            f"environment (draw {request.draw}, prompt {request.prompt.prompt_id!r}): its turns "
            f"are not done after {most_s:g} s: raise timeouts.call_s, or lower "
            f"environment.max_turns ({limits.max_turns}) or environment.timeout_s",
            cause="hung",
        ) from error

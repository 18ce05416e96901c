"""An engine that samples: what it was asked, in groups, and how it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engines.acting import Acting
from actors.engines.calls import ANSWER_S, EngineCalls
from actors.engines.samples import (
    NO_VERSION,
    Ending,
    rollouts_of,
    sampling_params,
    timing_of,
)
from actors.engines.sleep import EngineSleep
from actors.weights.adapter import adapter_request
from rlhf_ray.deadlines import deadline, in_thread
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import FloatArray, Rollout, RolloutSummary

if TYPE_CHECKING:
    from vllm import SamplingParams

# vLLM takes lower numbers first. What is asked of the weights does not wait behind samples.
SAMPLE, PROBE = 0, -1


@dataclass(eq=False, kw_only=True)
class Sampling:
    """A group on its way.

    Attributes:
        acting: What it takes to act in an environment; None without one.
        wave: Number of those that were admitted together with it; 0 where it was alone.
        request_ids: vLLM's names of its requests, as far as they are admitted.
        task: What waits for all of them; None while they are being admitted.
        dropped: Set when nobody waits for it any more.
    """

    request: GenerationRequest
    acting: Acting | None = None
    wave: int = 0
    request_ids: list[str] = field(default_factory=list)
    task: asyncio.Task[list[Rollout]] | None = None
    dropped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_dropped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.dropped.is_set()

    @property
    def has_failed(self) -> bool:
        """Whether there will be no rollouts of it."""
        task = self.task
        return task is not None and task.done() and (task.cancelled() or bool(task.exception()))


class SamplingEngine(EngineCalls):
    """Base of the actor around one of vLLM's engines: the part that answers requests.

    They run together under vLLM's continuous batching.

    Attributes:
        tokenizer: Of the model.
        version: Of the weights that the engine has.
        base: What those are called that its adapter changes; empty where it has none.
        num_waves: Of requests that were admitted together.
        num_publications: To it, of this job and those before.
        running: Names of the requests that vLLM may still have.
        groups: By their draws, until they are dropped.
    """

    tokenizer: Any = None
    version = NO_VERSION
    base = ""

    def __init__(self, name: str) -> None:
        """Nothing asked so far."""
        super().__init__(name)
        self.num_requests = self.num_waves = self.num_publications = 0
        self.running: set[str] = set()
        self.groups: dict[int, Sampling] = {}
        self.sleeping = EngineSleep(name, self.change)
        self._reading = threading.Lock()

    @recorded
    async def admit(
        self,
        requests: Sequence[GenerationRequest],
        ending: Ending,
        timeout_s: float,
        together: bool,
        acting: Acting | None = None,
    ) -> None:
        """Begin to sample requests, one a draw: all of them, or none where one is refused.

        Which requests share a batch decides the last bits of every logit. Those that are admitted
        together share all of theirs, because the engine stands until it has the last: the same
        requests give the same bits. Others begin at once, beside what runs.

        Raises:
            RunError: The engine cannot sample, or has one of the draws already.
        """
        self.num_waves += together
        wave = self.num_waves if together else 0
        groups = {
            request.draw: Sampling(request=request, acting=acting, wave=wave)
            for request in requests
        }
        await self._failed_are_dropped(groups, timeout_s)
        self.groups |= groups
        try:
            async with self.scheduling("admission", timeout_s):
                self.sleeping.require_model("asked to sample")
                async with self.paused(timeout_s) if together else nullcontext():
                    for group in groups.values():
                        await self._begin(group, ending, timeout_s)
        except BaseException:
            await self._drop(groups)
            raise

    async def _failed_are_dropped(self, draws: Iterable[int], timeout_s: float) -> None:
        """Wait until it is forgotten what these draws were asked for before, which has failed.

        Whoever asks for a draw again drops it first; Ray may deliver these calls the other way
        round.

        Raises:
            RunError: One is being sampled, or is not dropped.
        """
        before = {draw: self.groups[draw] for draw in draws if draw in self.groups}
        if again := sorted(draw for draw, group in before.items() if not group.has_failed):
            raise RunError(f"{self.name} samples draws {again} already")
        operation = f"draws {sorted(before)} to be dropped, which have failed"
        async with deadline(timeout_s, actor=self.name, operation=operation):
            for group in before.values():
                await group.dropped.wait()

    async def _begin(self, group: Sampling, ending: Ending, timeout_s: float) -> None:
        """Admit a group, all of it or nothing; it may be dropped meanwhile."""
        request, collectors = group.request, []
        try:
            for seed in request.seeds_G:
                if group.is_dropped:
                    return
                request_id = self._new_name(request.prompt.prompt_id)
                group.request_ids.append(request_id)
                params = sampling_params(request, seed, ending)
                ids_T = request.prompt.token_ids_T
                adding = self._add(
                    request_id, ids_T, params, SAMPLE, wave=group.wave, timeout_s=timeout_s
                )
                collectors.append(await adding)
            if not group.is_dropped:
                answers = dict(zip(group.request_ids, collectors, strict=True))
                group.task = asyncio.create_task(self._group(group, answers, ending, timeout_s))
        finally:
            if group.task is None:
                await self._end(group.request_ids)

    async def finished(self, draw: int) -> tuple[list[RolloutSummary], list[Rollout]]:
        """The group of a draw, once it is there; can be asked again until it is dropped.

        Returns:
            Summaries for the controller and the rollouts themselves, as two objects.

        Raises:
            RunError: vLLM ended a request, the group was dropped, or was never admitted.
        """
        group = self.groups.get(draw)
        if group is None or group.task is None:
            raise RunError(f"{self.name} is asked for draw {draw}, which it does not sample")
        try:
            # Whoever asks may give up and ask again: `drop` alone ends the group.
            rollouts = await asyncio.shield(group.task)
        except asyncio.CancelledError:
            if group.is_dropped:
                raise RunError(f"{self.name}: draw {draw} was dropped") from None
            raise
        return [RolloutSummary.of(rollout) for rollout in rollouts], rollouts

    async def drop(self, draws: Sequence[int]) -> None:
        """Forget groups that nobody waits for any more; what still runs of them ends."""
        await self._drop({draw: self.groups[draw] for draw in draws if draw in self.groups})

    async def _drop(self, groups: Mapping[int, Sampling]) -> None:
        for draw, group in groups.items():
            if self.groups.get(draw) is group:
                del self.groups[draw]
            group.dropped.set()
            if group.task is not None:  # else whoever admits it sees that it is dropped
                group.task.cancel()
        started = [group for group in groups.values() if group.task is not None]
        await self._end(request_id for group in started for request_id in group.request_ids)

    async def drop_requests(self) -> None:
        """End what runs for a job that is gone."""
        await self.drop(list(self.groups))
        await self._end(self.running)

    async def _group(
        self,
        group: Sampling,
        collectors: Mapping[str, Any],
        ending: Ending,
        timeout_s: float,
    ) -> list[Rollout]:
        """All samples of a draw; where one fails, the others are ended as well."""
        try:
            with span("sample", draw=group.request.draw) as labels:
                outputs_G = await self._finished(collectors, timeout_s=timeout_s)
                labels |= timing_of(outputs_G)
            # Texts take a while, in which the engine's own outputs must not wait.
            return await in_thread(
                partial(rollouts_of, group.request, outputs_G, ending, self.tokenizer),
                timeout_s=timeout_s,
                actor=self.name,
                operation=f"reading draw {group.request.draw}",
                lock=self._reading,  # a tokenizer is not for several threads
            )
        except Exception:
            await self._end(group.request_ids)
            raise

    def _new_name(self, name: str) -> str:
        """Of a request, which vLLM may have from now on."""
        self.num_requests += 1
        request_id = f"{name}/{self.num_requests}"
        self.running.add(request_id)
        return request_id

    async def _add(
        self,
        request_id: str,
        token_ids_T: Sequence[int],
        params: SamplingParams,
        priority: int,
        *,
        wave: int = 0,
        timeout_s: float,
    ) -> Any:
        """What the request's output comes from."""
        from vllm.inputs.engine import tokens_input

        # The salt keeps a prefix that older weights cached from being taken for these ones'. Their
        # version would not do: other jobs, and a run that goes on, have the same numbers. Of a wave
        # no other's prefix is taken either: on some processors a prompt has other last bits where
        # its beginning was computed before.
        salt = f"publication-{self.num_publications}" + f"/wave-{wave}" * bool(wave)
        # As vLLM has it once it has read a prompt, for which it would go to a thread and back.
        prompt = tokens_input(list(token_ids_T), cache_salt=salt)
        adapter = {"lora_request": adapter_request()} if self.base else {}
        return await self.ask(
            "add_request",
            request_id,
            prompt,
            params,
            priority=priority,
            timeout_s=timeout_s,
            **adapter,
        )

    async def _finished(self, collectors: Mapping[str, Any], *, timeout_s: float) -> list[Any]:
        """The outputs of requests that are answered together, in order."""
        operation, outputs = f"the answer to {next(iter(collectors), 'nothing')}", []
        async with (
            deadline(timeout_s, actor=self.name, operation=operation),
            self.usable(operation),
        ):
            for request_id, collector in collectors.items():
                output = await collector.get()
                while not output.finished:
                    output = await collector.get()
                self.running.discard(request_id)
                outputs.append(output)
        return outputs

    async def _end(self, request_ids: Iterable[str]) -> None:
        if ended := self.running & set(request_ids):
            self.running -= ended
            if not self.unusable:
                await self.ask("abort", ended, timeout_s=ANSWER_S)

    @recorded
    async def logprobs(self, rollouts: Sequence[Rollout], timeout_s: float) -> list[FloatArray]:
        """Log-probabilities that the current weights give to the tokens of finished rollouts.

        At temperature 1, whatever is sampled at: vLLM never divides the logits of a prompt. Where
        nothing else runs they begin together, as they do in `admit`: the same ones have the same
        bits, whatever the number of threads.
        """
        from vllm import SamplingParams

        self.require_usable("log-probabilities")
        self.sleeping.require_model("asked for log-probabilities")
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        collectors: dict[str, Any] = {}
        try:
            async with nullcontext() if self.running else self.paused(timeout_s):
                for rollout in rollouts:
                    ids_T = (*rollout.prompt.token_ids_T, *rollout.response_ids_T.tolist())
                    request_id = self._new_name("probe")
                    adding = self._add(request_id, ids_T, params, PROBE, timeout_s=timeout_s)
                    collectors[request_id] = await adding
            finished = await self._finished(collectors, timeout_s=timeout_s)
        finally:
            await self._end(collectors)
        return [
            _given_logprobs(output, rollout)
            for output, rollout in zip(finished, rollouts, strict=True)
        ]


def _given_logprobs(output: Any, rollout: Rollout) -> FloatArray:
    """Of a response's tokens, from what vLLM says of all tokens that it was given."""
    behind_prompt = output.prompt_logprobs[len(rollout.prompt.token_ids_T) :]
    response_ids_T = rollout.response_ids_T.tolist()
    return np.asarray(
        [at[token].logprob for at, token in zip(behind_prompt, response_ids_T, strict=True)],
        dtype=np.float32,
    )

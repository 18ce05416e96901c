"""An engine that samples: what it was asked, in groups, and how it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engines.sleep import EngineSleep
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.chat.borders import response_text
from rlhf_ray.deadlines import deadline
from rlhf_ray.errors import RunError
from rlhf_ray.roles import GenerationRequest
from rlhf_ray.types import Rollout, RolloutSummary

if TYPE_CHECKING:
    from vllm import SamplingParams

# An engine tells of itself between two of its steps.
ANSWER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What ends a response.

    Attributes:
        stop: Strings; the tokens that spell them are part of the response and its text.
        stop_token_ids: Tokens that the configuration names.
        end_token_ids: Those that end a turn: part of the response, not of its text.
        ignore_eos: Whether `end_token_ids`, and those that vLLM finds itself, end nothing.
    """

    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    end_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def of(cls, config: RolloutConfig, end_token_ids: Sequence[int]) -> Ending:
        """What the configuration says, and what tokenizer, model and template say."""
        return cls(
            stop=tuple(config.stop),
            stop_token_ids=tuple(config.stop_token_ids),
            end_token_ids=tuple(end_token_ids),
            ignore_eos=config.ignore_eos,
        )

    @property
    def token_ids(self) -> list[int]:
        """All tokens that end a response, as vLLM's `stop_token_ids` takes them."""
        ends = () if self.ignore_eos else self.end_token_ids
        return sorted({*self.stop_token_ids, *ends})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A group on its way: vLLM's names of its requests, and what waits for all of them."""

    request_ids: tuple[str, ...]
    task: asyncio.Task[list[Rollout]]


class SamplingEngine:
    """Base of the actor around one of vLLM's engines: the part that answers requests.

    They run together under vLLM's continuous batching.

    Attributes:
        engine: VLLM's `AsyncLLM`, once it is started.
        tokenizer: Of the model.
        version: Of the weights that the engine has; -1 before any publication.
    """

    engine: Any = None
    tokenizer: Any = None
    version = -1

    def __init__(self, name: str) -> None:
        """Nothing asked so far; `name` is the actor's, for errors."""
        self.name = name
        self.num_requests = 0
        self.running: set[str] = set()
        # By their draws; those that were asked for go when others are admitted.
        self.groups: dict[int, Sampling] = {}
        self.answered: set[int] = set()
        self.admitting: set[int] = set()
        self.sleeping = EngineSleep(name, self._ask)
        # Held while requests are admitted, while weights are exchanged, and on the way to sleep and
        # back: whoever pauses the scheduler must be the one who resumes it.
        self.scheduler = asyncio.Lock()

    async def admit(
        self, requests: Sequence[GenerationRequest], ending: Ending, timeout_s: float
    ) -> None:
        """Begin to sample requests, one a draw; hold the scheduler until the engine has them all.

        Which requests share a batch decides the last bits of every logit: the same requests give
        the same bits. Answers that were asked for are kept until the next call.

        Raises:
            RunError: The engine has no model, or a draw is being sampled already.
        """
        self.groups = {d: group for d, group in self.groups.items() if d not in self.answered}
        self.answered.clear()
        draws = {request.draw for request in requests}
        if again := draws & {*self.groups, *self.admitting}:
            raise RunError(f"{self.name} samples draws {sorted(again)} already")
        self.admitting |= draws
        try:
            await self._admit_together(requests, ending, timeout_s)
        finally:
            self.admitting -= draws

    async def _admit_together(
        self, requests: Sequence[GenerationRequest], ending: Ending, timeout_s: float
    ) -> None:
        async with deadline(timeout_s, actor=self.name, operation="admission"), self.scheduler:
            self.sleeping.require_model("asked to sample")
            await self._ask("pause_generation", mode="keep", clear_cache=False, timeout_s=timeout_s)
            try:
                for request in requests:
                    if request.draw in self.admitting:
                        await self._begin(request, ending, timeout_s)
            finally:
                await self._ask("resume_generation", timeout_s=ANSWER_S)

    async def _begin(self, request: GenerationRequest, ending: Ending, timeout_s: float) -> None:
        """Admit a group, all of it or nothing; it may be aborted meanwhile."""
        collectors: dict[str, Any] = {}
        try:
            for seed in request.seeds_G:
                request_id, collector = await self._admit(
                    request, seed, ending, timeout_s=timeout_s
                )
                collectors[request_id] = collector
        except BaseException:
            await self._end(collectors)
            raise
        self.groups[request.draw] = Sampling(
            request_ids=tuple(collectors),
            task=asyncio.create_task(self._group(request, collectors, ending, timeout_s)),
        )
        if request.draw not in self.admitting:
            await self.abort([request.draw])

    async def finished(self, draw: int) -> tuple[list[RolloutSummary], list[Rollout]]:
        """The group of a draw that was admitted, once it is there; can be asked again.

        Returns:
            Summaries for the controller and the rollouts themselves, as two objects.

        Raises:
            RunError: vLLM ended a request, the group was aborted, or was never admitted.
        """
        group = self.groups.get(draw)
        if group is None:
            raise RunError(f"{self.name} is asked for draw {draw}, which it does not sample")
        try:
            # Whoever asks may give up and ask again: `abort` alone ends the group.
            rollouts = await asyncio.shield(group.task)
        except asyncio.CancelledError:
            if group.task.cancelled():
                raise RunError(f"{self.name}: draw {draw} was aborted") from None
            raise
        finally:
            if group.task.done():
                self.answered.add(draw)
        return [summarize(rollout) for rollout in rollouts], rollouts

    async def abort(self, draws: Sequence[int]) -> None:
        """End the groups of draws that nobody waits for any more, and forget them."""
        self.admitting.difference_update(draws)
        ended = [group for draw in draws if (group := self.groups.pop(draw, None))]
        for group in ended:
            group.task.cancel()
        await self._end(request_id for group in ended for request_id in group.request_ids)

    async def _group(
        self,
        request: GenerationRequest,
        collectors: Mapping[str, Any],
        ending: Ending,
        timeout_s: float,
    ) -> list[Rollout]:
        """All samples of a draw; where one fails, the others are ended as well."""
        answers = [
            asyncio.ensure_future(self._finished(*one, timeout_s=timeout_s))
            for one in collectors.items()
        ]
        try:
            return [
                self._rollout(request, sample, output.outputs[0], ending)
                for sample, output in enumerate(await asyncio.gather(*answers))
            ]
        except Exception:
            for answer in answers:
                answer.cancel()
            await self._end(collectors)
            raise

    async def _admit(
        self, request: GenerationRequest, seed: int, ending: Ending, *, timeout_s: float
    ) -> tuple[str, Any]:
        """The request's name, and what its output comes from."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return await self._add(
            request.prompt.prompt_id,
            request.prompt.token_ids_T,
            SamplingParams(
                temperature=request.temperature,
                max_tokens=request.max_new_tokens,
                seed=seed,
                logprobs=0,
                flat_logprobs=True,
                stop=list(ending.stop) or None,
                stop_token_ids=ending.token_ids or None,
                include_stop_str_in_output=True,
                # Stop strings are looked for in the text that rewards see.
                skip_special_tokens=False,
                ignore_eos=ending.ignore_eos,
                detokenize=bool(ending.stop),
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
            timeout_s=timeout_s,
        )

    async def _add(
        self, name: str, token_ids_T: Sequence[int], params: SamplingParams, *, timeout_s: float
    ) -> tuple[str, Any]:
        self.num_requests += 1
        request_id = f"{name}/{self.num_requests}"
        self.running.add(request_id)
        # The salt keeps a prefix that older weights cached from being taken for this version's.
        salt = f"version-{self.version}"
        prompt: Any = {"prompt_token_ids": list(token_ids_T), "cache_salt": salt}
        adding = self._ask("add_request", request_id, prompt, params, timeout_s=timeout_s)
        return request_id, await adding

    async def _ask(self, method: str, *arguments: Any, timeout_s: float, **keywords: Any) -> Any:
        """An answer of vLLM's engine, whose own calls wait for its processes without a deadline."""
        async with deadline(timeout_s, actor=self.name, operation=f"the engine's {method}"):
            return await getattr(self.engine, method)(*arguments, **keywords)

    async def _finished(self, request_id: str, collector: Any, *, timeout_s: float) -> Any:
        async with deadline(timeout_s, actor=self.name, operation=f"the answer to {request_id}"):
            output = await collector.get()
            while not output.finished:
                output = await collector.get()
        self.running.discard(request_id)
        return output

    async def drop_requests(self) -> None:
        """End what runs for a job that is gone."""
        await self.abort(list(self.groups))
        await self._end(self.running)

    async def _end(self, request_ids: Iterable[str]) -> None:
        if ended := self.running & set(request_ids):
            self.running -= ended
            await self._ask("abort", ended, timeout_s=ANSWER_S)

    def _rollout(
        self, request: GenerationRequest, sample: int, output: Any, ending: Ending
    ) -> Rollout:
        prompt = request.prompt
        if output.finish_reason not in ("stop", "length"):
            raise RunError(f"{prompt.prompt_id}: vLLM ended the request: {output.finish_reason}")
        num_tokens = len(output.token_ids)
        # A stop string may end with a token that could have ended the response by itself.
        by_token = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
        ends = ending.end_token_ids if by_token else ()
        logprobs = output.logprobs
        versions_T = np.full(num_tokens, self.version, dtype=np.int32)
        for span in output.weight_versions or ():
            versions_T[span.start : span.end] = int(span.version)
        return Rollout(
            prompt=prompt,
            draw=request.draw,
            sample=sample,
            response_ids_T=np.asarray(output.token_ids, dtype=np.int32),
            logprobs_T=np.asarray(
                [logprobs.logprobs[start] for start in logprobs.start_indices], dtype=np.float32
            ),
            versions_T=versions_T,
            action_mask_T=np.ones(num_tokens, dtype=np.bool_),
            finish_reason=output.finish_reason,
            text=response_text(self.tokenizer, prompt.token_ids_T, output.token_ids, end_ids=ends),
        )

    async def logprobs(
        self, rollouts: Sequence[Rollout], timeout_s: float
    ) -> list[np.ndarray[Any, Any]]:
        """Log-probabilities that the current weights give to the tokens of finished rollouts.

        At temperature 1, whatever is sampled at: vLLM never divides the logits of a prompt.
        """
        self.sleeping.require_model("asked for log-probabilities")
        scores = [
            self._score(
                (*rollout.prompt.token_ids_T, *rollout.response_ids_T.tolist()),
                num_given=len(rollout.prompt.token_ids_T),
                timeout_s=timeout_s,
            )
            for rollout in rollouts
        ]
        return list(await asyncio.gather(*scores))

    async def _score(
        self, token_ids_T: tuple[int, ...], *, num_given: int, timeout_s: float
    ) -> np.ndarray[Any, Any]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        admitted = await self._add("probe", token_ids_T, params, timeout_s=timeout_s)
        output = await self._finished(*admitted, timeout_s=timeout_s)
        return np.asarray(
            [
                position[token].logprob
                for position, token in zip(
                    output.prompt_logprobs[num_given:], token_ids_T[num_given:], strict=True
                )
            ],
            dtype=np.float32,
        )


def summarize(rollout: Rollout) -> RolloutSummary:
    """What the controller may know of a rollout."""
    return RolloutSummary(
        sample=rollout.sample,
        num_prompt_tokens=len(rollout.prompt.token_ids_T),
        num_response_tokens=len(rollout.response_ids_T),
        num_action_tokens=int(rollout.action_mask_T.sum()),
        finish_reason=rollout.finish_reason,
        version_min=int(rollout.versions_T.min()),
        version_max=int(rollout.versions_T.max()),
        version_sum=int(rollout.versions_T.sum()),
    )

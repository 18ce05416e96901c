"""The Ray actor around one vLLM async engine: it samples and takes new weights."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.cluster.gpus import require_engine
from actors.cluster.network import use_cluster_network
from actors.cluster.role import control
from actors.engines.ending import Ending
from actors.engines.load import EngineLoad
from actors.engines.metrics import engine_stat_logger
from actors.engines.shared_memory import outlive_actor
from actors.engines.sleep import EngineSleep
from actors.engines.spec import EngineSpec, engine_arguments, engine_environment
from actors.weights.bucket import Bucket
from rlhf_ray.data.borders import response_text
from rlhf_ray.deadlines import deadline
from rlhf_ray.errors import RunError
from rlhf_ray.roles import EnginePart, GenerationRequest, SleepLevel
from rlhf_ray.types import Prompt, Rollout, RolloutSummary

if TYPE_CHECKING:
    from vllm import SamplingParams

logger = logging.getLogger(__name__)

# An engine tells of itself between two of its steps.
ANSWER_S = 60.0
# Its first requests may compile.
WARM_UP_S = 600.0


class RolloutReplica:
    """One engine. Requests run together under vLLM's continuous batching."""

    def __init__(self, name: str, environment: Mapping[str, str], spec: EngineSpec) -> None:
        """Set the environment, which vLLM reads at import; `start` does the slow part."""
        os.environ.update(environment)
        use_cluster_network()
        if "VLLM_PLUGINS" in os.environ:
            os.environ["VLLM_PLUGINS"] += ",rlhf_ray"
        os.environ.update(engine_environment(spec))
        logging.basicConfig(level=logging.INFO)
        self.spec, self.name = spec, name
        self.version = -1
        self.num_requests = 0
        self.running: set[str] = set()
        # By their draws; those that were asked for go when others are admitted.
        self.groups: dict[int, asyncio.Task[list[Rollout]]] = {}
        self.answered: set[int] = set()
        self.load = EngineLoad()
        self.sleeping = EngineSleep(name, self._ask)
        self.exchange_s = ANSWER_S
        # Held while requests are admitted, while weights are exchanged, and on the way to sleep and
        # back: whoever pauses the scheduler must be the one who resumes it.
        self.scheduler = asyncio.Lock()

    async def start(self) -> None:
        """Load the model and start vLLM's processes.

        Raises:
            ConfigError: The installed vLLM, or this node, has no engines of the kind asked for.
            RunError: With what vLLM says of a model that it cannot run.
        """
        require_engine(self.name, num_gpus=self.spec.num_gpus)
        outlive_actor()
        from transformers import AutoTokenizer
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = AsyncEngineArgs(**engine_arguments(self.spec))
            self.engine = AsyncLLM.from_engine_args(
                arguments, stat_loggers=[lambda *_: self.load, engine_stat_logger()]
            )
        except Exception as error:
            # vLLM's message says "see root cause above", in a log that the driver does not show.
            raise RunError(f"vLLM did not start: {error}\n{last_errors()}") from error
        self.tokenizer = AutoTokenizer.from_pretrained(
            self.spec.tokenizer_path, trust_remote_code=self.spec.trust_remote_code
        )
        await self._warm_up()

    async def _warm_up(self) -> None:
        """The first request of each kind takes seconds: not while a training step waits for it."""
        prompt = Prompt(prompt_id="warm-up", token_ids_T=(0, 0), text="")
        request = GenerationRequest(
            prompt=prompt, draw=0, seeds_G=(0,), temperature=1.0, max_new_tokens=2
        )
        admitted = await self._admit(request, 0, Ending(), timeout_s=WARM_UP_S)
        await self._finished(*admitted, timeout_s=WARM_UP_S)
        await self._score(prompt.token_ids_T, num_given=1, timeout_s=WARM_UP_S)

    @control
    async def health(self) -> dict[str, Any]:
        """Answers also while the engine is busy."""
        engine = getattr(self, "engine", None)
        return {
            "name": self.name,
            "version": self.version,
            "alive": engine is not None and not engine.errored,
            "updating": self.scheduler.locked(),
        }

    # Not in the control group: the engine only answers on the event loop that it was started on.
    async def usage(self) -> Mapping[str, float]:
        """The engine's load since the last time, and its largest worker's memory so far."""
        peaks_gb = await self.ask_workers("report_peak_memory_gb")
        return {"peak_gb": max(peaks_gb), **self.load.take()}

    async def ask_workers(self, method: str) -> list[Any]:
        """What each of vLLM's workers, or our extension of them, answers to a method."""
        asked: list[Any] = await self._ask(
            "collective_rpc", method, timeout=ANSWER_S, timeout_s=ANSWER_S
        )
        return asked

    async def admit(
        self, requests: Sequence[GenerationRequest], ending: Ending, timeout_s: float
    ) -> None:
        """Begin to sample all requests, and hold the scheduler until the engine has all of them.

        Which requests share a batch decides the last bits of every logit: the same requests give
        the same bits. Answers that were asked for are kept until the next call.

        Args:
            requests: One a draw.
            ending: What ends a response.
            timeout_s: Of admission, and again of each answer.

        Raises:
            RunError: The engine has no model, or a draw is being sampled already.
        """
        self.groups = {d: task for d, task in self.groups.items() if d not in self.answered}
        self.answered.clear()
        if again := self.groups.keys() & {request.draw for request in requests}:
            raise RunError(f"{self.name} samples draws {sorted(again)} already")
        async with deadline(timeout_s, actor=self.name, operation="admission"), self.scheduler:
            self.sleeping.require_model("asked to sample")
            await self._ask("pause_generation", mode="keep", clear_cache=False, timeout_s=timeout_s)
            try:
                for request in requests:
                    admitted = [
                        await self._admit(request, seed, ending, timeout_s=timeout_s)
                        for seed in request.seeds_G
                    ]
                    self.groups[request.draw] = asyncio.create_task(
                        self._group(request, admitted, ending, timeout_s)
                    )
            finally:
                await self._ask("resume_generation", timeout_s=ANSWER_S)

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
            rollouts = await asyncio.shield(group)
        except asyncio.CancelledError:
            if group.cancelled():
                raise RunError(f"{self.name}: draw {draw} was aborted") from None
            raise
        finally:
            if group.done():
                self.answered.add(draw)
        return [summarize(rollout) for rollout in rollouts], rollouts

    async def abort(self, draws: Sequence[int]) -> None:
        """End the groups of draws that nobody waits for any more, and forget them."""
        for draw in draws:
            if task := self.groups.pop(draw, None):
                task.cancel()

    async def _group(
        self,
        request: GenerationRequest,
        admitted: Sequence[tuple[str, Any]],
        ending: Ending,
        timeout_s: float,
    ) -> list[Rollout]:
        """All samples of a draw; where one fails, the others are ended as well."""
        try:
            outputs = await asyncio.gather(
                *(self._finished(*one, timeout_s=timeout_s) for one in admitted)
            )
            return [
                self._rollout(request, sample, output.outputs[0], ending)
                for sample, output in enumerate(outputs)
            ]
        except BaseException:
            await self._end([request_id for request_id, _ in admitted])
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

    async def _end(self, request_ids: Collection[str]) -> None:
        ended = self.running & set(request_ids)
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
            own_T=np.ones(num_tokens, dtype=np.bool_),
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

    async def init_weight_transfer(self, init_info: Mapping[str, Any], timeout_s: float) -> None:
        """Connect to the trainer, where the backend needs a connection; ends the one before."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._ask("shutdown_weight_transfer_engine", timeout_s=timeout_s)
        await self._ask(
            "init_weight_transfer_engine",
            WeightTransferInitRequest(init_info=dict(init_info)),
            timeout_s=timeout_s,
        )

    async def start_weight_update(self, timeout_s: float) -> None:
        """Freeze running requests where they are and make the model ready for new weights.

        Args:
            timeout_s: Of each call of this exchange, those that follow included.
        """
        self.exchange_s = timeout_s
        async with deadline(timeout_s, actor=self.name, operation="the scheduler for new weights"):
            await self.scheduler.acquire()
        await self._ask("pause_generation", mode="keep", clear_cache=True, timeout_s=timeout_s)
        self.sleeping.has_model = False
        await self._ask("start_weight_update", timeout_s=timeout_s)

    async def update_weights(self, update: Bucket | Mapping[str, Any]) -> None:
        """Take one bucket, or let vLLM's own backend receive what `update` describes."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        if isinstance(update, Bucket):
            update = {
                "names": update.names,
                "dtype_names": update.dtype_names,
                "shapes": update.shapes,
                "data": update.data.tobytes(),
            }
        request = WeightTransferUpdateRequest(update_info=dict(update))
        await self._ask("update_weights", request, timeout_s=self.exchange_s)

    async def finish_weight_update(self, version: int) -> int:
        """Use the new weights and let requests go on; returns the version as acknowledgement."""
        timeout_s = self.exchange_s
        await self._ask("finish_weight_update", weight_version=str(version), timeout_s=timeout_s)
        self.version, self.sleeping.has_model = version, True
        if not self.sleeping.asleep:  # else waking the cache resumes
            await self._ask("resume_generation", timeout_s=timeout_s)
        self.scheduler.release()
        return self.version

    async def sleep(self, level: SleepLevel, timeout_s: float) -> None:
        """Give the GPU's memory to whoever shares it; see `EngineSleep`."""
        async with deadline(timeout_s, actor=self.name, operation="sleep"), self.scheduler:
            await self.sleeping.sleep(level, timeout_s=timeout_s)

    async def wake_up(self, part: EnginePart | None, timeout_s: float) -> None:
        """Take the memory back, or that of one part."""
        async with deadline(timeout_s, actor=self.name, operation="waking up"), self.scheduler:
            await self.sleeping.wake_up(part, timeout_s=timeout_s)

    def process_id(self) -> int:
        """Of this actor."""
        return os.getpid()

    async def stop(self) -> None:
        """End vLLM's processes."""
        if hasattr(self, "engine"):
            self.engine.shutdown()


def last_errors(num_lines: int = 8) -> str:
    """The last lines of this process's log that tell of an error, and where the log is."""
    path = Path(os.readlink("/proc/self/fd/1"))
    if not path.is_file():
        return ""
    lines = path.read_text(errors="replace").splitlines()
    errors = [line.rpartition("] ")[2] for line in lines if re.search(r"\b\w*Error\b", line)]
    return "\n".join([*dict.fromkeys(errors[-num_lines:]), f"the whole log: {path}"])


def summarize(rollout: Rollout) -> RolloutSummary:
    """What the controller may know of a rollout."""
    return RolloutSummary(
        sample=rollout.sample,
        num_prompt_tokens=len(rollout.prompt.token_ids_T),
        num_response_tokens=len(rollout.response_ids_T),
        num_own_tokens=int(rollout.own_T.sum()),
        finish_reason=rollout.finish_reason,
        version_min=int(rollout.versions_T.min()),
        version_max=int(rollout.versions_T.max()),
        version_sum=int(rollout.versions_T.sum()),
    )

"""The Ray actor around one vLLM async engine: it samples and takes new weights."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from actors.cluster.gpus import require_engine
from actors.cluster.network import use_cluster_network
from actors.cluster.role_spec import ActorUsage, control
from actors.engines.calls import ANSWER_S
from actors.engines.report import EngineLoad, engine_stat_logger
from actors.engines.samples import Ending
from actors.engines.spec import EngineSpec, engine_arguments, engine_environment, outlive_actor
from actors.engines.trajectory import ActingEngine
from actors.weights.bucket import Bucket
from actors.weights.segment import SegmentPlace, SegmentRing, SharedBucket
from rlhf_ray.errors import RlhfRayError, RunError
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.roles.protocols import EnginePart, SleepLevel
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

# Its first requests may compile.
WARM_UP_S = 600.0


class RolloutReplica(ActingEngine):
    """One engine: it starts, takes weights, sleeps and ends beside what it samples.

    Attributes:
        exchange: The deadline of an exchange of weights, while there is one; it holds `scheduler`.
        exchange_s: Of each of its calls.
        started_on: The event loop on which the engine answers, once it is started.
        segments: Where buckets lie that came from another node.
    """

    started_on: asyncio.AbstractEventLoop | None = None

    def __init__(self, name: str, environment: Mapping[str, str], spec: EngineSpec) -> None:
        """Set the environment, which vLLM reads at import; `start` does the slow part."""
        os.environ.update(environment)
        use_cluster_network()
        if "VLLM_PLUGINS" in os.environ:
            os.environ["VLLM_PLUGINS"] += ",rlhf_ray"
        os.environ.update(engine_environment(spec))
        logging.basicConfig(level=logging.INFO)
        super().__init__(name)
        self.spec = spec
        self.load = EngineLoad()
        self.exchange: asyncio.TimerHandle | None = None
        self.exchange_s = ANSWER_S
        self.segments = SegmentRing()

    @recorded
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
        self.started_on = asyncio.get_running_loop()

    async def _warm_up(self) -> None:
        """The first request of each kind takes seconds: not while a training step waits for it."""
        prompt = Prompt(prompt_id="warm-up", token_ids_T=(0, 0), text="")
        request = GenerationRequest(
            prompt=prompt, draw=0, seeds_G=(0,), temperature=1.0, max_new_tokens=2
        )
        await self.admit([request], Ending(), WARM_UP_S, together=True)
        [rollout] = (await self.finished(request.draw))[1]
        await self.drop([request.draw])
        await self.logprobs([rollout], WARM_UP_S)

    @control
    async def health(self) -> dict[str, Any]:
        """Answers also while the engine is busy, between two of its steps.

        `fault` says why it cannot be used, if so.
        """
        fault = "it is not started" if self.engine is None else self.unusable
        # Amid an exchange of weights, and asleep, it has other things to do.
        if self.started_on is not None and not (fault or self.exchange or self.sleeping.asleep):
            fault = await self._fault_of_engine(self.started_on)
        return {
            "name": self.name,
            "version": self.version,
            "fault": fault,
            "updating": self.exchange is not None,
        }

    async def _fault_of_engine(self, loop: asyncio.AbstractEventLoop) -> str:
        """What its process says, asked on the event loop that it answers on."""
        question = self.ask("get_weight_version", timeout_s=ANSWER_S)
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(question, loop))
        except RlhfRayError as error:
            return str(error)
        return ""

    # Not in the control group: the engine only answers on the event loop that it was started on.
    async def usage(self) -> ActorUsage:
        """The engine's load and spans, and its largest worker's memory so far."""
        peaks_gb = await self.ask_workers("report_peak_memory_gb")
        return ActorUsage.of_process({"peak_gb": max(peaks_gb), **self.load.take()})

    async def ask_workers(self, method: str, *arguments: Any) -> list[Any]:
        """What each of vLLM's workers, or our extension of them, answers to a method."""
        asked: list[Any] = await self.ask(
            "collective_rpc", method, args=arguments, timeout=ANSWER_S, timeout_s=ANSWER_S
        )
        return asked

    async def use_threads(self, number: int) -> None:
        """Have its workers compute with so many from now on."""
        await self.ask_workers("use_threads", number)

    async def init_weight_transfer(self, init_info: Mapping[str, Any], timeout_s: float) -> None:
        """Connect to the trainer, where the backend needs a connection; ends the one before."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.ask("shutdown_weight_transfer_engine", timeout_s=timeout_s)
        await self.ask(
            "init_weight_transfer_engine",
            WeightTransferInitRequest(init_info=dict(init_info)),
            timeout_s=timeout_s,
        )

    async def reads_memory(self, node_id: str, place: SegmentPlace) -> bool:
        """Whether its workers are on this node of Ray's, and can read memory of the process."""
        if node_id != ray.get_runtime_context().get_node_id():
            return False
        can_read = all(await self.ask_workers("can_read", asdict(place)))
        if not can_read:
            logger.warning("%s gets weights through Ray, though they are on its node", self.name)
        return can_read

    @recorded
    async def start_weight_update(self, timeout_s: float, keeps_cache: bool) -> None:
        """Freeze running requests where they are and make the model ready for new weights.

        The exchange ends by this deadline, with the calls that follow. Until then nothing is
        admitted; where it does not end, the engine is half loaded and not used again.

        With `keeps_cache` running requests go on from the keys and values that older weights made;
        else the new ones make these again. Requests that come later meet none of them: see `_add`.
        """
        await self.take_scheduler("the scheduler for new weights", timeout_s)
        self.exchange_s = timeout_s
        loop = asyncio.get_running_loop()
        self.exchange = loop.call_later(timeout_s, self.fail, "a publication to it did not end")
        await self.change(
            "pause_generation", mode="keep", clear_cache=not keeps_cache, timeout_s=timeout_s
        )
        self.sleeping.has_model = False
        await self.change("start_weight_update", timeout_s=timeout_s)

    @recorded
    async def update_weights(self, update: SharedBucket | Bucket | Mapping[str, Any]) -> None:
        """Load one bucket, or let vLLM's own backend receive what `update` describes."""
        if isinstance(update, Bucket):  # from another node; workers read this process's memory
            segment = self.segments.next(len(update.data))
            segment.data[: len(update.data)] = update.data
            await self.update_weights(SharedBucket.of(update, segment))
            return
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        info = asdict(update) if isinstance(update, SharedBucket) else dict(update)
        request = WeightTransferUpdateRequest(update_info=info)
        await self.change("update_weights", request, timeout_s=self.exchange_s)

    async def base_name(self) -> str:
        """What the weights are called that its adapter changes; empty where it has none."""
        return self.base

    async def finish_weight_update(self, version: int, base: str) -> int:
        """Use the new weights and let requests go on; returns the version as acknowledgement.

        Args:
            version: Of what came.
            base: What the weights are called that the adapter which came changes; empty where none
                came.
        """
        timeout_s = self.exchange_s
        with span("finish_weight_update", version=version):
            await self.change(
                "finish_weight_update", weight_version=str(version), timeout_s=timeout_s
            )
            if base:
                call = {"timeout": timeout_s, "timeout_s": timeout_s}
                await self.change("collective_rpc", "use_adapter", **call)
            self.version, self.base, self.sleeping.has_model = version, base, True
            self.num_publications += 1
            if not self.sleeping.asleep:  # else waking the cache resumes
                await self.change("resume_generation", timeout_s=timeout_s)
        self._end_exchange()
        self.segments.close()
        return self.version

    def fail(self, fault: str) -> None:
        """As of any engine; an exchange of weights is over."""
        super().fail(fault)
        self._end_exchange()

    def _end_exchange(self) -> None:
        if self.exchange is not None:
            self.exchange.cancel()
            self.exchange = None
            self.scheduler.release()

    @recorded
    async def sleep(self, level: SleepLevel, timeout_s: float) -> None:
        """Give the GPU's memory to whoever shares it; see `EngineSleep`.

        Weights under adapters are kept on the host: no publication brings them again.
        """
        if self.spec.adapter_rank:
            level = 1
        async with self.scheduling("sleep", timeout_s):
            await self.sleeping.sleep(level, timeout_s=timeout_s)

    @recorded
    async def wake_up(self, part: EnginePart | None, timeout_s: float) -> None:
        """Take the memory back, or that of one part."""
        async with self.scheduling("waking up", timeout_s):
            await self.sleeping.wake_up(part, timeout_s=timeout_s)

    def process_id(self) -> int:
        """Of this actor."""
        return os.getpid()

    async def stop(self) -> None:
        """End vLLM's processes."""
        if self.engine is not None:
            self.engine.shutdown()


def last_errors(num_lines: int = 8) -> str:
    """The last lines of this process's log that tell of an error, and where the log is."""
    path = Path(os.readlink("/proc/self/fd/1"))
    if not path.is_file():
        return ""
    lines = path.read_text(errors="replace").splitlines()
    errors = [line.rpartition("] ")[2] for line in lines if re.search(r"\b\w*Error\b", line)]
    return "\n".join([*dict.fromkeys(errors[-num_lines:]), f"the whole log: {path}"])

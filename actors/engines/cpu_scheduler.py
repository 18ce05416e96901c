"""vLLM's scheduler on a CPU, which keeps log-probabilities until their response has ended."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request


class FinalLogprobsScheduler(Scheduler):
    """As vLLM's, but that log-probabilities leave with a response's last token.

    vLLM sends three arrays a token to the process that asked, packed and unpacked one by one,
    though it answers once. Tokens pass as they come, so that each has the version of the weights
    that sampled it.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing kept so far."""
        super().__init__(*arguments, **keywords)
        self._kept: WeakKeyDictionary[Request, list[LogprobsLists]] = WeakKeyDictionary()

    def update_from_output(
        self, scheduler_output: Any, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        """What each client is told of a step."""
        requests = dict(self.requests)  # those that end now are forgotten
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        for of_client in outputs.values():
            for output in of_client.outputs:
                if output.new_logprobs is not None:
                    self._keep(requests[output.request_id], output)
        return outputs

    def _keep(self, request: Request, output: EngineCoreOutput) -> None:
        params = request.sampling_params
        # Where the client looks for stop strings, a response may end with any token.
        if params.output_kind != RequestOutputKind.FINAL_ONLY or params.stop:
            return
        kept = self._kept.setdefault(request, [])
        kept.append(output.new_logprobs)
        output.new_logprobs = None
        if output.finished:
            output.new_logprobs = LogprobsLists(
                np.concatenate([lists.logprob_token_ids for lists in kept]),
                np.concatenate([lists.logprobs for lists in kept]),
                np.concatenate([lists.sampled_token_ranks for lists in kept]),
            )

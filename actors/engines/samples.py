"""What vLLM is asked for a sample, and what it answers as a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.chat.borders import response_text
from rlhf_ray.environments.play import SampledTurn
from rlhf_ray.errors import RunError
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import IntArray, Rollout

if TYPE_CHECKING:
    from vllm import SamplingParams

# What vLLM calls weights that were never published, and what we do.
UNPUBLISHED, NO_VERSION = "default", -1


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


def sampling_params(request: GenerationRequest, seed: int, ending: Ending) -> SamplingParams:
    """Of one sample."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
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
        skip_clone=True,  # nobody else has them
    )


def rollouts_of(
    request: GenerationRequest, outputs_G: Sequence[Any], ending: Ending, tokenizer: Any
) -> list[Rollout]:
    """All samples of a draw, from vLLM's `RequestOutput` of each.

    Raises:
        RunError: vLLM ended one of the requests.
    """
    return [
        rollout_of(request, sample, output.outputs[0], ending, tokenizer)
        for sample, output in enumerate(outputs_G)
    ]


def rollout_of(
    request: GenerationRequest, sample: int, output: Any, ending: Ending, tokenizer: Any
) -> Rollout:
    """A sample from vLLM's `CompletionOutput`.

    Raises:
        RunError: vLLM ended the request.
    """
    prompt = request.prompt
    turn = sampled_turn(prompt.prompt_id, output)
    # A stop string may end with a token that could have ended the response by itself.
    by_token = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
    ends = ending.end_token_ids if by_token else ()
    return Rollout(
        prompt=prompt,
        draw=request.draw,
        sample=sample,
        response_ids_T=np.asarray(turn.ids_T, dtype=np.int32),
        logprobs_T=np.asarray(turn.logprobs_T, dtype=np.float32),
        versions_T=versions_of(output),
        action_mask_T=np.ones(len(output.token_ids), dtype=np.bool_),
        finish_reason=output.finish_reason,
        text=response_text(tokenizer, prompt.token_ids_T, output.token_ids, end_ids=ends),
    )


def sampled_turn(prompt_id: str, output: Any) -> SampledTurn:
    """The tokens of vLLM's `CompletionOutput`, each with what is known of it.

    Raises:
        RunError: vLLM ended the request.
    """
    if output.finish_reason not in ("stop", "length"):
        raise RunError(f"{prompt_id}: vLLM ended the request: {output.finish_reason}")
    logprobs = output.logprobs
    return SampledTurn(
        ids_T=output.token_ids,
        logprobs_T=[logprobs.logprobs[start] for start in logprobs.start_indices],
        versions_T=versions_of(output).tolist(),
        is_cut=output.finish_reason == "length",
    )


def versions_of(output: Any) -> IntArray:
    """Version of the weights that sampled each token: the engine's own account, span by span."""
    versions_T = np.full(len(output.token_ids), NO_VERSION, dtype=np.int32)
    for span in output.weight_versions:
        if span.version != UNPUBLISHED:
            versions_T[span.start : span.end] = int(span.version)
    return versions_T


def timing_of(outputs: Sequence[Any]) -> dict[str, float]:
    """How long a group waited in vLLM, for its first token, and from there for its last one.

    Args:
        outputs: vLLM's `RequestOutput` of each sample; the group begins with the first of them.
    """
    stats = [output.metrics for output in outputs if output.metrics]
    if not stats:
        return {}
    queued_s, scheduled_s, first_s = (
        min(getattr(one, name) for one in stats)
        for name in ("queued_ts", "scheduled_ts", "first_token_ts")
    )
    last_s = max(one.last_token_ts for one in stats)
    return {
        "queued_s": round(scheduled_s - queued_s, 6),
        "prefill_s": round(first_s - scheduled_s, 6),
        "decode_s": round(last_s - first_s, 6),
    }

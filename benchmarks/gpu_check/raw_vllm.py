"""vLLM alone, timed: `python -m benchmarks.gpu_check.raw_vllm FILE`.

`FILE` has the engine's arguments and the requests; the rate is written beside it. A process of its
own, because vLLM takes a share of the card for as long as its process lives.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(file: Path) -> None:
    from vllm import LLM, SamplingParams

    work = json.loads(file.read_text())
    llm = LLM(**work["arguments"])

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            [
                SamplingParams(
                    temperature=1.0,
                    seed=number,
                    logprobs=0,
                    max_tokens=new_tokens,
                    ignore_eos=True,
                    detokenize=False,
                )
                for number in range(len(prompts))
            ],
            use_tqdm=False,
        )

    generate(work["prompts"][:8], 8)
    began_s = time.monotonic()
    generate(work["prompts"], work["new_tokens"])
    seconds = time.monotonic() - began_s
    rate = len(work["prompts"]) * work["new_tokens"] / seconds
    file.with_suffix(".rate").write_text(str(rate))
    llm.llm_engine.engine_core.shutdown(10.0)  # by itself it may wait for its worker for ever


if __name__ == "__main__":
    main(Path(sys.argv[1]))

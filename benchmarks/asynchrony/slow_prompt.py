"""Now and then a prompt whose answer takes 200 times as many tokens as any other.

The model answers as it is built to: what follows a token is fixed, and the last token of a prompt
decides whether the answer is 2 tokens long or goes on to the limit. A step waits for its slowest
group, so that no group is trained late or left out; what that costs is measured against the same
steps without slow prompts, synchronous and one publication stale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.asynchrony.runs import DATA, PLAIN, Metrics, open_runs, stories_config
from rlhf_ray.config.online import GrpoConfig

PROMPTS, SAMPLES, SHORT, LONG = 8, 2, 2, 400
# Far enough apart that each is over before the next is drawn.
STEPS, SLOW_STEPS = 14, (4, 8, 12)
TOKENIZER = DATA / "models/stories260K"
END = 1  # stories260K's end of a story
QUICK_PROMPT, SLOW_PROMPT = "Once there was a dog", "Once there was a cat!"


def save_model(folder: Path) -> None:
    """A model in which each token has one successor: the slow prompt's last token is its own.

    After any other comes one that is followed by the end. Attention and MLP add nothing, each token
    has a dimension of its own, and the head leads from it to the successor.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    loop, quick = (tokenizer(prompt).input_ids[-1] for prompt in (SLOW_PROMPT, QUICK_PROMPT))
    size = len(tokenizer)
    before_end = next(token for token in range(size) if token not in (loop, quick, END, 0, 2))
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=size // 32,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).float()
    [layer] = model.model.layers
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token in range(size):
            after = loop if token == loop else END if token == before_end else before_end
            model.lm_head.weight[after, token] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_prompts(path: Path, *, has_slow: bool) -> None:
    """Those of all steps, in their order; one is slow in the middle of each of `SLOW_STEPS`."""
    prompts = [QUICK_PROMPT] * (PROMPTS * STEPS)
    for step in SLOW_STEPS if has_slow else ():
        prompts[(step - 1) * PROMPTS + PROMPTS // 2] = SLOW_PROMPT
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def config_of(
    folder: Path, *, max_staleness: int, has_slow: bool, steps: int = STEPS
) -> GrpoConfig:
    """The job; it hardly learns, so that the model stays as it is built."""
    name = "slow" if has_slow else "quick"
    return stories_config(
        folder / f"{name}-{max_staleness}",
        PLAIN,
        {
            "total_steps": steps,
            "max_staleness": max_staleness,
            "prompts_per_step": PROMPTS,
            "samples_per_prompt": SAMPLES,
            "data": {
                "path": str(folder / f"{name}.jsonl"),
                "shuffle": False,
                "skip": 0,
                "prompt_tokens": 0,
            },
            "policy": {"model": {"path": str(folder / "model")}, "optim": {"lr": 1e-9}},
            "rollout": {"max_new_tokens": LONG, "max_num_seqs": 64, "kv_cache_gb": 0.25},
        },
    )


def faults(rows: Sequence[Metrics], *, max_staleness: int, has_slow: bool) -> list[str]:
    """What does not hold of the steps of a run, in words."""
    found = []
    for row in rows:
        step = int(row["step"])
        is_slow = has_slow and step in SLOW_STEPS
        tokens = SHORT * PROMPTS * SAMPLES + is_slow * (LONG - SHORT) * SAMPLES
        expected = {
            "rollout/trained_groups": PROMPTS,
            "rollout/left_out_groups": 0,
            "rollout/refilled_groups": 0,
            "rollout/response_tokens_mean": tokens / (PROMPTS * SAMPLES),
        }
        for name, wanted in expected.items():
            if row[name] != wanted:
                found.append(f"step {step}: {name} is {row[name]:g}, not {wanted:g}")
        if row["async/staleness_max"] > max_staleness:
            found.append(f"step {step}: staleness {row['async/staleness_max']:g}")
    return found


def slow_prompt(folder: Path) -> dict[str, Any]:
    """Runs with and without slow prompts, synchronous and one publication stale; in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model")
    for name, has_slow in (("slow", True), ("quick", False)):
        write_prompts(folder / f"{name}.jsonl", has_slow=has_slow)
    said: dict[str, Any] = {"tokens of a slow answer / of another": LONG / SHORT}
    found: list[str] = []
    warm_up = config_of(folder, max_staleness=1, has_slow=False, steps=2)
    with open_runs(warm_up) as runs:
        runs.train(warm_up)
        for max_staleness in (0, 1):
            rows = {}
            for has_slow in (False, True):
                job = config_of(folder, max_staleness=max_staleness, has_slow=has_slow)
                rows[has_slow] = runs.train(job)[1:]
                found += faults(rows[has_slow], max_staleness=max_staleness, has_slow=has_slow)
            said[f"max_staleness {max_staleness}"] = _lost(rows[True], rows[False])
    return said | {"faults": found, "holds": not found}


def _lost(slow: Sequence[Metrics], quick: Sequence[Metrics]) -> dict[str, Any]:
    slow_s, quick_s = (sum(row["time/step"] for row in rows) for rows in (slow, quick))
    return {
        "step without a slow prompt": quick_s / len(quick),
        "time lost for each slow prompt": (slow_s - quick_s) / len(SLOW_STEPS),
        "steps of the run with them": [round(row["time/step"], 2) for row in slow],
        "largest staleness": max(row["async/staleness_max"] for row in slow),
        "groups sampled": len(slow) * PROMPTS,
        "groups trained": sum(row["rollout/trained_groups"] for row in slow),
    }

"""Memory by part, against what each ZeRO stage keeps and what was measured."""

from __future__ import annotations

import pytest
from plan_jobs import EIGHT_B, SHAPES, job, memory_of, planned

from rlhf_ray.learner.deepspeed.memory import GPU_FACTOR, PREFETCH_BUCKET, REDUCE_BUCKET
from rlhf_ray.memory import GIB, MIB

NUM = SHAPES[EIGHT_B].num_parameters("lm")


def learner(ranks=1, **settings):
    """Memory of an SFT policy on GPUs."""
    config = job("sft", policy=settings, placement={"policy": {"ranks": ranks, "gpus_per_rank": 1}})
    return memory_of(planned(config), "policy")


def states(memory):
    return memory.weights, memory.gradients, memory.optimizer


def test_each_zero_stage_spreads_what_it_promises():
    float32 = {"dtype": "float32"}
    assert states(learner(model=float32)) == (4 * NUM, 4 * NUM, 8 * NUM)
    # bfloat16 without a stage runs as stage 1: a float32 copy, and gradients summed in float32.
    assert states(learner(model={})) == (2 * NUM, 4 * NUM, 12 * NUM)
    assert states(learner(4, zero={"stage": 1})) == (2 * NUM, 4 * NUM, 3 * NUM)
    assert states(learner(4, zero={"stage": 2})) == (2 * NUM, NUM // 2 + NUM, 3 * NUM)
    assert states(learner(4, zero={"stage": 3})) == (NUM // 2, NUM, 3 * NUM)


def test_stage_3_gathers_weights_up_to_deepspeeds_limit():
    memory = learner(8, zero={"stage": 3})
    # What is reduced is bfloat16, and sent as float32.
    assert memory.buckets == 2 * REDUCE_BUCKET
    assert memory.buffers == 2 * 10**9 + 2 * PREFETCH_BUCKET + 4 * REDUCE_BUCKET
    limits = {
        "stage3_max_live_parameters": 10**8,
        "stage3_prefetch_bucket_size": 10**6,
        "reduce_bucket_size": 10**7,
    }
    small = learner(8, zero={"stage": 3, "extra": {"zero_optimization": limits}})
    # The embedding is gathered whole.
    assert small.buffers == 2 * SHAPES[EIGHT_B].num_embedding + 2 * 10**6 + 4 * 10**7
    assert learner(zero={"stage": 3}).buffers == 4 * REDUCE_BUCKET, "one rank has all of it"


def test_offloading_moves_states_to_the_node():
    def offloaded(**zero):
        group = {"ranks": 4, "gpus_per_rank": 1}
        config = job("sft", policy={"zero": zero}, placement={"policy": group})
        [need] = planned(config).roles
        return *states(need.memory), need.host

    assert offloaded(stage=3, offload_optimizer="cpu") == (NUM // 2, 0, 0, 3 * NUM + NUM)
    assert offloaded(stage=2, offload_optimizer="cpu") == (2 * NUM, NUM // 2, 0, 3 * NUM + NUM)
    # Each pass's own gradients and their sum, whole.
    assert offloaded(stage=1, offload_optimizer="cpu") == (2 * NUM, 6 * NUM, 0, 3 * NUM + NUM)
    both = offloaded(stage=3, offload_optimizer="cpu", offload_param="cpu")
    assert both == (0, 0, 0, 3 * NUM + NUM + NUM // 2)
    nvme = offloaded(stage=3, offload_optimizer="nvme", nvme_path="/nvme")
    assert nvme == (NUM // 2, 0, 0, 0)


def test_adapters_alone_have_gradients_and_states():
    matrices = SHAPES[EIGHT_B].matrices
    adapters = 16 * sum(matrix.inputs + matrix.outputs for matrix in matrices)
    memory = learner(model={"lora": {"rank": 16}})
    # As bfloat16 weights are trained: with sums and copies in float32, and Adam's two.
    assert states(memory) == (2 * NUM + 2 * adapters, 4 * adapters, 12 * adapters)
    quantized = learner(model={"lora": {"rank": 16}, "quantization": "4bit"})
    assert quantized.weights < memory.weights / 2


def test_adapters_are_where_the_configuration_puts_them():
    two = learner(model={"lora": {"rank": 16, "target_modules": ["q_proj", "v_proj"]}})
    # A layer of 8 B parameters: queries from 4,096 to 4,096, values to 1,024.
    assert two.optimizer == 12 * 32 * 16 * (4096 + 4096 + 4096 + 1024)
    every = learner(model={"lora": {"rank": 16}})
    unknown = learner(model={"lora": {"rank": 16, "target_modules": ["q_proj", "attn.c_proj"]}})
    assert unknown.optimizer == every.optimizer


def test_checkpointing_keeps_a_layers_input_alone():
    whole, checkpointed = learner(model={}), learner(model={"gradient_checkpointing": True})
    assert checkpointed.activations < whole.activations / 8
    kept = 2 * 32 * 4096 * 8192
    assert checkpointed.activations > kept


def test_logits_exist_for_a_chunk_of_tokens():
    thousand = learner(logits_chunk_tokens=1024).logits
    assert learner(logits_chunk_tokens=512).logits * 2 == thousand
    whole = learner(max_tokens_per_micro_batch=2048, logits_chunk_tokens=4096).logits
    assert whole == 2 * thousand
    assert learner().logits * 1024 == thousand * (2**26 // 128256)


def test_a_critic_has_no_vocabulary_product():
    plan = planned(job("ppo", placement={"value": {"gpus_per_rank": 1}}))
    assert memory_of(plan, "value").logits == 0
    expected = 2 * (SHAPES[EIGHT_B].num_body + 4096)
    assert memory_of(plan, "value").weights == expected


def test_a_frozen_model_is_spread_by_stage_3_alone():
    def reference(stage):
        group = {"ranks": 4, "gpus_per_rank": 1}
        config = job("dpo", reference={"zero": {"stage": stage}}, placement={"reference": group})
        return memory_of(planned(config), "reference")

    assert states(reference(2)) == (2 * NUM, 0, 0)
    assert states(reference(3)) == (NUM // 2, 0, 0)


def test_sampling_has_a_policy_that_takes_no_step():
    def sampling(**policy):
        groups = {"policy": {"ranks": 4, "gpus_per_rank": 1}, "rollout": {"gpus_per_rank": 1}}
        plan = planned(job("sample", policy=policy, placement=groups))
        assert {need.role for need in plan.roles} == {"policy", "rollout", "reward_worker"}
        assert plan.stages[0].batches.optimizer_steps == 0
        return memory_of(plan, "policy")

    assert states(sampling(model={"dtype": "float32"})) == (4 * NUM, 0, 0)
    # DeepSpeed makes room for float32 copies and sums of gradients before any step.
    assert states(sampling()) == (2 * NUM, 4 * NUM, NUM)
    assert states(sampling(zero={"stage": 2})) == (2 * NUM, 0, NUM)
    assert states(sampling(zero={"stage": 3})) == (NUM // 2, NUM, NUM)
    away = sampling(zero={"stage": 1, "offload_optimizer": "cpu"})
    assert states(away) == (2 * NUM, 0, 0)


def test_all_tokens_of_the_probe_get_logits():
    config = job(
        "sample",
        policy={"max_tokens_per_micro_batch": 2048},
        rollout={"max_new_tokens": 64},
        placement={"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_rank": 1}},
    )
    # Of a chunk.
    in_use = 523 * 128256 * (2 + 2 * 4)
    assert memory_of(planned(config), "policy").logits == int(GPU_FACTOR * in_use)


def test_sampling_passes_no_more_than_the_probe():
    few = planned(job("sample", publication={"probe_sequences": 1}))
    many = planned(job("sample", publication={"probe_sequences": 4}))
    trained = planned(job("grpo"))
    sizes = [memory_of(plan, "policy").activations for plan in (few, many, trained)]
    assert sizes == sorted(set(sizes))


def test_what_is_scored_ahead_or_held_out_fills_micro_batches():
    budget = {"max_tokens_per_micro_batch": 65536}

    def read_tokens(name, role, **sections):
        config = job(name, batch_size=1, max_length=1024, **sections)
        [need] = [need for need in planned(config).roles if need.role == role]
        return need.model.tokens("read")

    held_out = {"eval": {"data": {"path": "held-out.jsonl"}}}
    assert read_tokens("sft", "policy", policy=budget) == 0
    assert read_tokens("sft", "policy", policy=budget, **held_out) == 65536
    assert read_tokens("rm", "reward", reward=budget) == 65536, "its reference answers"
    assert read_tokens("dpo", "reference", reference=budget) == 2 * 1024
    ahead = {"reference_kind": "precomputed"}
    assert read_tokens("dpo", "reference", reference=budget, **ahead) == 65536


def test_between_passes_there_are_states_and_buckets():
    memory = learner(8, zero={"stage": 3})
    passing = memory.activations + memory.logits + memory.buffers
    assert memory.at_rest.total == memory.total - passing
    assert memory.at_rest.buckets == 2 * REDUCE_BUCKET


def test_an_engine_fills_its_share():
    groups = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_rank": 2}}
    config = job("grpo", placement=groups)
    memory = memory_of(planned(config), "rollout")
    assert memory.total == pytest.approx(0.85 * 80 * GIB, rel=1e-6)
    assert memory.weights == NUM


@pytest.mark.parametrize("gpus", [0, 1])
def test_an_engine_has_room_for_the_tokens_of_its_largest_step(gpus):
    def memory(tokens):
        config = job(
            "grpo",
            rollout={"max_num_batched_tokens": tokens},
            placement={
                "policy": {"gpus_per_rank": min(1, gpus)},
                "rollout": {"gpus_per_rank": gpus},
            },
        )
        return memory_of(planned(config), "rollout")

    assert memory(16384).activations == 2 * memory(8192).activations


def test_an_engine_on_the_cpu_prefills_its_longest_prompt_whole():
    def activations(longest):
        return memory_of(planned(job("grpo", rollout={"max_model_len": longest})), "rollout")

    assert activations(32768).activations == 4 * activations(2048).activations


# Peak resident memory (VmHWM, MiB) by benchmarks/planned_memory.py: 2 cores, torch 2.13 for CPUs,
# vLLM 0.32, float32.
FLOAT32 = {"dtype": "float32"}
STORIES = {
    "prompts_per_step": 32,
    "samples_per_prompt": 8,
    "data": {"prompt_tokens": 24},
    "policy": {"model": {"path": "tiny", **FLOAT32}, "logits_chunk_tokens": 1024},
    "reference": {"model": FLOAT32, "logits_chunk_tokens": 1024},
    "rollout": {"max_new_tokens": 64, "max_model_len": 0, "kv_cache_gb": 0.5},
    "algorithm": {"minibatches": 2, "kl": {"coefficient": 0.02}},
}
LLAMA = {
    "prompts_per_step": 16,
    "samples_per_prompt": 4,
    "data": {"prompt_tokens": 24},
    "policy": {
        "model": {"path": "llama-134m", **FLOAT32},
        "max_tokens_per_micro_batch": 2048,
        "logits_chunk_tokens": 1024,
    },
    "reference": {
        "model": FLOAT32,
        "max_tokens_per_micro_batch": 2048,
        "logits_chunk_tokens": 1024,
    },
    "rollout": {
        "max_new_tokens": 40,
        "max_model_len": 0,
        "max_num_seqs": 64,
        "kv_cache_gb": 0.5,
    },
    "algorithm": {"minibatches": 1, "kl": {"coefficient": 0.02}},
}
QWEN = {
    **LLAMA,
    "policy": {
        "model": {"path": "qwen2-66m", **FLOAT32},
        "max_tokens_per_micro_batch": 1024,
        "share_prompts": False,  # as it was measured
        "logits_chunk_tokens": 1024,
        "zero": {"stage": 2},
    },
    "value": {
        "model": {**FLOAT32, "gradient_checkpointing": True},
        "max_tokens_per_micro_batch": 2048,
    },
    "reference": {
        "model": FLOAT32,
        "max_tokens_per_micro_batch": 4096,
        "logits_chunk_tokens": 1024,  # as it was measured
    },
    "rollout": {**LLAMA["rollout"], "kv_cache_gb": 0.25},
    "placement": {"policy": {"ranks": 2}},
}


SFT = {"batch_size": 8, "max_length": 128, "eval": {"data": {"path": "held-out.jsonl"}}}
LLAMA_19M = {
    **SFT,
    "policy": {
        "model": {"path": "llama-19m", "gradient_checkpointing": True, **FLOAT32},
        "max_tokens_per_micro_batch": 2048,
        "logits_chunk_tokens": 256,
        "zero": {"stage": 2},
    },
}
QWEN_22M = {
    **SFT,
    "max_length": 256,
    "policy": {
        "model": {"path": "qwen2-22m", **FLOAT32},
        "logits_chunk_tokens": 1024,
        "max_tokens_per_micro_batch": 1024,
        "zero": {"stage": 2},
    },
}


QWEN_25M_ON_TWO_RANKS = {
    **SFT,
    "max_length": 512,
    "policy": {
        "model": {"path": "qwen2-25m", **FLOAT32},
        "max_tokens_per_micro_batch": 2048,
        "logits_chunk_tokens": 256,
        "zero": {"stage": 3},
    },
    "placement": {"policy": {"ranks": 2}},
}
QWEN_55M = {
    **SFT,
    "policy": {
        "model": {"path": "qwen3-55m", "gradient_checkpointing": True, **FLOAT32},
        "logits_chunk_tokens": 1024,
        "max_tokens_per_micro_batch": 4096,
        "zero": {"stage": 3},
    },
}


@pytest.mark.parametrize(
    ("name", "sections", "role", "measured"),
    [
        ("sft", LLAMA_19M, "policy", 1336),
        ("sft", QWEN_22M, "policy", 2152),
        ("sft", QWEN_25M_ON_TWO_RANKS, "policy", 2346),
        ("sft", QWEN_55M, "policy", 3784),
        ("grpo", STORIES, "policy", 1166),
        ("grpo", STORIES, "rollout", 1236),
        ("grpo", STORIES, "reference", 648),
        ("grpo", LLAMA, "policy", 7260),
        ("grpo", LLAMA, "reference", 1528),
        ("ppo", QWEN, "policy", 2922),
        ("ppo", QWEN, "reference", 1210),
        ("ppo", QWEN, "value", 2645),
    ],
)
def test_processes_on_a_cpu_take_what_was_measured(name, sections, role, measured):
    memory = memory_of(planned(job(name, **sections)), role)
    # Within 25 %: two runs of one job may differ by a tenth, as the heap keeps holes. What a
    # process has before a model is there does not count in its favour.
    above = measured - memory.process / MIB
    assert (memory.total - memory.process) / MIB == pytest.approx(above, rel=0.25)


def test_a_mask_and_more_logits_are_planned_where_prompts_are_shared():
    def policy(dtype, **settings):
        model = {**QWEN["policy"]["model"], "dtype": dtype}
        sections = {**QWEN, "policy": {**QWEN["policy"], "model": model, **settings}}
        return memory_of(planned(job("ppo", **sections)), "policy")

    anew, shared = policy("float32"), policy("float32", share_prompts=True)
    row_tokens = 24 + QWEN["rollout"]["max_new_tokens"]
    assert shared.activations - anew.activations == 1024 * row_tokens * 4
    assert shared.logits > anew.logits


def test_gpus_of_one_engine_share_its_inner_width_and_all_have_its_logits():
    def memory(gpus):
        placement = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_rank": gpus}}
        config = job("grpo", placement=placement)
        return memory_of(planned(config), "rollout")

    one, two = memory(1), memory(2)
    shape = SHAPES[EIGHT_B]
    assert one.activations - two.activations == 8192 * 2 * 3 * shape.ffn // 2
    assert one.logits == two.logits
    assert two.weights == one.weights // 2

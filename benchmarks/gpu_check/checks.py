"""Every check, in the order in which they run and are shown."""

from __future__ import annotations

from benchmarks.gpu_check.records import Check

_SUBJECTS = "benchmarks.gpu_check.subjects"

CHECKS = (
    Check(
        name="card",
        holds="torch, its CUDA and vLLM are made for these cards",
        function=f"{_SUBJECTS}.card:check_cards",
        process="kernels",
        budget_s=90.0,
    ),
    Check(
        name="kernels",
        holds="attention of packed sequences is float64's, forward and backward",
        function=f"{_SUBJECTS}.kernels:check_kernels",
        process="kernels",
        budget_s=90.0,
        on_cpu=True,
    ),
    Check(
        name="gradients",
        holds="what Adam is given is float32's gradient, in however many micro-batches",
        function=f"{_SUBJECTS}.gradients:check_micro_batches",
        process="gradients",
        budget_s=150.0,
        on_cpu=True,
    ),
    Check(
        name="offloaded-adam",
        holds="the same with Adam on the CPU",
        function=f"{_SUBJECTS}.gradients:check_offloading",
        process="gradients",
        budget_s=150.0,
        on_cpu=True,
    ),
    Check(
        name="gradients-of-ranks",
        holds="the same with the step cut among ranks",
        function=f"{_SUBJECTS}.gradients:check_ranks",
        process="gradients-of-ranks",
        budget_s=180.0,
        num_cards=2,
        on_cpu=True,
    ),
    Check(
        name="ipc",
        holds="every weight reaches an engine on the policy's card, bit for bit",
        function=f"{_SUBJECTS}.publication:check_ipc",
        process="one-card",
        budget_s=240.0,
        on_cpu=True,
    ),
    Check(
        name="agreement",
        holds="engine and trainer give sampled tokens the same log-probabilities",
        function=f"{_SUBJECTS}.agreement:check_half",
        process="one-card",
        budget_s=60.0,
        on_cpu=True,
    ),
    Check(
        name="agreement-float32",
        holds="the same in float32",
        function=f"{_SUBJECTS}.agreement:check_float32",
        process="float32",
        budget_s=180.0,
    ),
    Check(
        name="mfu-4k",
        holds="the learner computes, at 4,096 tokens a sequence",
        function=f"{_SUBJECTS}.utilisation:check_4k",
        process="learner",
        budget_s=90.0,
        memory_gb=22.0,
        on_cpu=True,
    ),
    Check(
        name="mfu-16k",
        holds="the learner computes, at 16,384 tokens a sequence",
        function=f"{_SUBJECTS}.utilisation:check_16k",
        process="learner",
        budget_s=60.0,
        memory_gb=36.0,
        on_cpu=True,
    ),
    Check(
        name="mfu-64k",
        holds="the learner computes, at 65,536 tokens a sequence",
        function=f"{_SUBJECTS}.utilisation:check_64k",
        process="learner",
        budget_s=90.0,
        memory_gb=36.0,
        on_cpu=True,
    ),
    Check(
        name="memory",
        holds="a learner takes what the plan says",
        function=f"{_SUBJECTS}.memory:check_learner",
        process="memory",
        budget_s=60.0,
        memory_gb=36.0,
        on_cpu=True,
    ),
)

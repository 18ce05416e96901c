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
)

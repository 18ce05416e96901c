"""Does it all work on this machine's GPUs? `make gpu-check`, a quarter of an hour at most.

    python -m benchmarks.gpu_check                     # every check that the cards allow
    python -m benchmarks.gpu_check --only kernels ipc  # some of them
    python -m benchmarks.gpu_check --rehearse          # those that can, tiny, on the CPU

A check is a function that yields measurements, each with its limit (`checks.py` lists them,
`subjects/` has them). Models are made from configurations, with random weights: nothing is
downloaded. Checks run in processes of their own, so that one that crashes, hangs or fills the card
is a failure of that one alone; several that need the same engine share a process. With two cards or
more, checks of one card run side by side.

`runs/gpu-check.json` is written after each check. The table's last line is for bug reports. The
exit status is 1 where a check failed, else 0: also on a machine without a card, where none applies.
"""

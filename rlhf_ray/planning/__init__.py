"""What a job will need, from its configuration alone: placement, memory, batches; no torch."""

"""What a run costs its driver, by the number of GPUs."""

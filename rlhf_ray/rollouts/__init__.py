"""From the order of the data to groups that were sampled and scored, a step's worth at a time."""

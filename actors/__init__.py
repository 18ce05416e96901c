"""Ray actors and placement: the distributed half of rlhf-ray."""

"""rlhf-ray: the pure library; it imports neither ray nor vllm."""

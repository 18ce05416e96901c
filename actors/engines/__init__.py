"""vLLM: the actor around one engine, and the replicas as a loop sees them."""

"""What environments need of vLLM."""

"""Configuration of every job: pydantic models, YAML, overrides. A leaf: it imports no torch."""

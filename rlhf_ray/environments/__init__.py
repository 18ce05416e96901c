"""Worlds that a policy acts in over several turns: pure, without engines and actors."""

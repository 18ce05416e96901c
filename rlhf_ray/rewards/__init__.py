"""Scores that need no model of ours: Python functions, verifiers, and a remote service."""

"""A task of two turns that one turn cannot solve, and how much a policy learns of it."""

"""How a run does whose processes are killed one after the other."""

"""Steps of this project beside steps of TRL: the same model, prompts, lengths and losses, in turns."""

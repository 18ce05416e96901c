"""Steps of this project and of TRL in turns: the same model, prompts, lengths and losses."""

"""One small learner a trained role, over an engine's Protocol; DeepSpeed is the engine."""

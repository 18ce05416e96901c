"""Training on DeepSpeed: the engine, and one small learner a role. The only DeepSpeed import."""

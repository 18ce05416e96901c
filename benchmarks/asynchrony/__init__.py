"""What it brings and costs that sampling runs ahead of training: time, rewards, overhead."""

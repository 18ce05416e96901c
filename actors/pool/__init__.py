"""The resident pool: where actors sit, what they hold, who uses them."""

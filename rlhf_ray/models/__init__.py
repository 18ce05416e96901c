"""Models: loading, packed batches, attention, heads, export."""

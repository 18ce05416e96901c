"""Weights on their way between actors: buckets, publication to the engines, the probe."""

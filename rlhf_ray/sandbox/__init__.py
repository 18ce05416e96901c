"""Code of a policy, run where it can do little harm."""

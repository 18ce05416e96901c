"""From a job's specifications to roles on the resident pool."""

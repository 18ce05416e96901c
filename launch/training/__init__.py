"""From a job's configuration to roles on a pool, and the loop over them."""

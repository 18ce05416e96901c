"""From a configuration to a job's rows."""

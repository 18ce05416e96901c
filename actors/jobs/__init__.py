"""Ray's job API: jobs that were submitted from elsewhere."""

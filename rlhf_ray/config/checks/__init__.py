"""What can be known to fail before Ray starts: files, models, packages, this machine."""

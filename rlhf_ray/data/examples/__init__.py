"""What each job makes of samples."""

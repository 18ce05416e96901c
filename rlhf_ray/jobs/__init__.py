"""What each kind of job is: its data, its roles, its loop; over a pool that tests can fake."""

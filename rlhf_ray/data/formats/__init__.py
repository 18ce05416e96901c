"""Row formats: what a row says, whatever a data set calls it."""

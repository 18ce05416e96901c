"""Files of data, whatever their form: which there are, and their rows."""

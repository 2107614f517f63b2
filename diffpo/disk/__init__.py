"""Files that are whole or not there, where weights are, progress on long work."""

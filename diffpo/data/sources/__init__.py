"""The layouts of columns that a pair table may have, one file each."""

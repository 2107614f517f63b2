"""Models side by side: pairing, statistics, tournaments, and their tables."""

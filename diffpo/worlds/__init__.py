"""Small worlds that draw and check: the embedded default, and a real test."""

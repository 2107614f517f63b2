"""Builds the users world: its pairs. Run by `scripts/build_users.py`."""

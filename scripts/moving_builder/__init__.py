"""Builds the moving world: networks, training, pairs, measurements. Run by `scripts/build_moving.py`."""

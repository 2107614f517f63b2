"""Builds the shapes world: networks, training, pairs, measurements. Run by `scripts/build_shapes.py`."""

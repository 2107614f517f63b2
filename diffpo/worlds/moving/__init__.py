"""The moving world: one coloured shape that moves across a plain background, and captions that say how.

It draws captioned clips (`scenes`, `render`), checks clips against captions segment by segment (`verify`) and simulates
annotators who label segments (`annotators`). `scripts/build_moving.py` makes its model and pairs. What is the same
idea as in `diffpo.worlds.shapes` (shapes, colours, how an object is seen in one picture) is taken from there.
"""

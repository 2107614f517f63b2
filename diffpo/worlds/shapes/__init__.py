"""The shapes world: a small, self-contained stand-in for the real one.

It draws captioned scenes (`scenes`, `render`), checks pictures against captions exactly (`verify`), simulates
annotators (`annotators`) and finds the models and pairs made of all this (`assets`). `scripts/build_shapes.py` makes
them anew. No network library is imported here: only the functions that build or train networks need one.
"""

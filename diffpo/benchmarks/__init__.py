"""Judgements that are more than a scorer: GenEval, and what sets of images tell."""

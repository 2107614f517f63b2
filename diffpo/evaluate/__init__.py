"""Evaluation: prompt sets, media folders, statistics, comparisons, grids and the report."""

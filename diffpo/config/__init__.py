"""Configurations: YAML and overrides to checked blocks."""

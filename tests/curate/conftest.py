"""Rows, pictures and caches of their own for each test."""

from data_fixtures import encoder, jsonl, one_thread, own_caches, picture, records  # noqa: F401

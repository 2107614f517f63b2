"""Layouts that have no random access, or no columns: each is read here once and written as a pair table."""

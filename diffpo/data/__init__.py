"""Pair tables, their encodings, and the batches made of them. `datasets` is imported when a table is read."""

from diffpo.data.records import Source, Splits, Table
from diffpo.data.sources import SOURCES, HPDv3, Pairs, PickAPic
from diffpo.data.splits import check_requires, load_splits

__all__ = ["SOURCES", "HPDv3", "Pairs", "PickAPic", "Source", "Splits", "Table", "check_requires", "load_splits"]

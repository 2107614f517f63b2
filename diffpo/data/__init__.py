"""Pair tables, their encodings, and the batches made of them. Nothing heavy is imported before a table is read."""

from diffpo.data.records import Source, Splits, Table
from diffpo.data.sources.hpdv3 import HPDv3
from diffpo.data.sources.pairs import Pairs
from diffpo.data.sources.pickapic import PickAPic
from diffpo.data.splits import check_requires, load_splits

SOURCES: dict[str, type[Source]] = {"pairs": Pairs, "pickapic": PickAPic, "hpdv3": HPDv3}
"""Every layout of a pair table by its name in the configuration."""

__all__ = ["SOURCES", "HPDv3", "Pairs", "PickAPic", "Source", "Splits", "Table", "check_requires", "load_splits"]

"""The layouts that pair tables come in."""

from diffpo.data.records import Source
from diffpo.data.sources.hpdv3 import HPDv3
from diffpo.data.sources.pairs import Pairs
from diffpo.data.sources.pickapic import PickAPic

SOURCES: dict[str, type[Source]] = {"pairs": Pairs, "pickapic": PickAPic, "hpdv3": HPDv3}
"""Every layout of a pair table by its name in the configuration."""

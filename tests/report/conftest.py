"""Two scored media folders."""

from judged_fixtures import folders  # noqa: F401

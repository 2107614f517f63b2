#!/usr/bin/env bash
# The quick checks, in the order in which one wants to hear of them; the first that fails stops.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; "$@"; }

step ruff check .
step ruff format --check .
step pyright
step python -m pytest -q tests/test_layers.py

#!/usr/bin/env bash
# Print the first Python >= 3.11 that runs and can make a virtual environment: $PYTHON, python3, then by version.
set -u

for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
  # Run it: a launcher may be on the path without the version behind it.
  if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    command -v "$name"
    exit 0
  fi
done

echo "No Python >= 3.11 with the venv module was found (tried ${PYTHON:-}${PYTHON:+, }python3, python3.11 to python3.14)." >&2
echo "Install one (Debian: apt install python3-venv), or name it: make PYTHON=/path/to/python TARGET" >&2
exit 1

#!/usr/bin/env bash
# Collect what diffpo needs beside torch, for a GPU machine that reaches no network: wheels for its Python, some 15 MB.
#
#     scripts/gpu_wheels.sh FOLDER             for Python 3.12 on x86-64
#     PYTHON_VERSION=3.13 scripts/gpu_wheels.sh FOLDER
#
# Carry the folder there, and give it to `scripts/gpu_check.sh --wheels FOLDER`. What is taken for granted is there
# already: torch, torchvision, transformers, accelerate, safetensors, numpy, scipy, pandas, pyarrow, pillow, matplotlib,
# jinja2, pyyaml, pytest. Versions are those of constraints.txt. Nothing is installed here.
set -euo pipefail
out=${1:?usage: scripts/gpu_wheels.sh FOLDER}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
packages=(
  diffusers importlib_metadata zipp                       # networks, pipelines
  peft                                                    # adapters
  datasets multiprocess dill xxhash                       # pair tables
  pydantic pydantic_core annotated-types typing-inspection typing_extensions # configurations
  typer rich shellingham annotated-doc markdown-it-py mdurl Pygments # commands
)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
mkdir -p "$out"
pinned() { grep -i -E "^${1//[-_]/[-_]}==" "$root/constraints.txt" || echo "$1"; }
missing=()
for name in "${packages[@]}"; do
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --platform any -d "$out" "$(pinned "$name")" ||
    missing+=("$name")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "not to be had as a wheel: ${missing[*]}" >&2
  exit 1
fi
du -sh "$out" | sed 's/\t/  /'

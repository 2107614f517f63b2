#!/usr/bin/env bash
# Check diffpo on a bare GPU machine: torch is there, a network is not. All within 8 minutes; small tables come last.
#
#     scripts/gpu_wheels.sh WHEELS                            where there is a network; then carry the tree and WHEELS
#     scripts/gpu_check.sh --out DIR --wheels WHEELS          there
#     scripts/gpu_check.sh --out DIR --tiny                   on a CPU: small sizes, to see that the script itself works
#
# --steps lane,bench,train   which steps, in this order; each ends at its own limit (NAME:SECONDS sets another one):
#     lane    tests/gpu: precision, compilation, attention, optimizers, resuming, generation, encoding      (170 s)
#     bench   scripts/bench_sweep.py at full size, as many rows as the time allows                          (130 s)
#     train   diffpo train, encoding included, on a folder of Stable Diffusion 1.5's size with random
#             weights; diffpo plan of it; then the run goes on, compiled, as far as the time allows           (170 s)
#
# It writes DIR/{env,lane,bench,train}.json, a log of each step and summary.txt: nothing else outside /tmp. The exit code
# is 0 if every step did what it should, 1 if one did not, 2 if something is missing.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out="" steps="lane,bench,train" wheels="" tiny=""
usage() { sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:-}; shift 2 || usage ;;
    --steps) steps=${2:-}; shift 2 || usage ;;
    --wheels) wheels=${2:-}; shift 2 || usage ;;
    --tiny) tiny=1; shift ;;
    *) usage ;;
  esac
done
[ -n "$out" ] || usage
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d /tmp/gpu-check.XXXXXX) || exit 2
trap 'rm -rf "$work"' EXIT

path=$root:$root/scripts
if [ -n "$wheels" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" \
    "$wheels"/*.whl || { echo "gpu_check: the wheels of $wheels cannot be installed" >&2; exit 2; }
  path=$path:$work/site
fi
export PYTHONPATH=$path PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
export TMPDIR=$work XDG_CACHE_HOME=$work/cache HF_HOME=$work/hub HF_HUB_OFFLINE=1 DIFFPO_CACHE=$work/encodings
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton MPLCONFIGDIR=$work/matplotlib
export CUBLAS_WORKSPACE_CONFIG=:4096:8 COLUMNS=160

"$python" "$root/scripts/gpu_report.py" environment "$out/env.json" || exit 2

lane() {
  DIFFPO_LANE_JSON=$out/lane.json "$python" -m pytest -q -p no:cacheprovider --basetemp "$work/pytest" \
    --rootdir "$root" -c "$root/pyproject.toml" "$root/tests/gpu"
}

bench() {
  local rows=("sd15@512 lora batch=16 compile=regional" "sd15@512 full batch=16 compile=regional"
    "sdxl@1024 lora batch=4 checkpointing=1 compile=regional" "sd15@512 full batch=16" "sd15@512 lora batch=16")
  local how=(--seconds $((seconds - 10)))
  [ -z "$tiny" ] || { rows=("tiny-sd15 full batch=2" "tiny-sdxl lora batch=2"); how+=(--mixed-precision no); }
  "$python" "$root/scripts/bench_sweep.py" --out "$work/sweep" "${how[@]}" "${rows[@]}"
  local code=$?
  cp "$work/sweep/sweep.json" "$out/bench.json" && return $code
}

train() {
  local here=$work/model started=$SECONDS
  "$python" "$root/scripts/random_sd15.py" "$here" ${tiny:+--tiny --dtype float32} || return 1
  echo "made in $((SECONDS - started)) s"
  "$python" -m diffpo train "$here/train.yaml" || return 1
  "$python" "$root/scripts/gpu_report.py" run "$here/run" "$out/train.json" || return 1
  echo "trained after $((SECONDS - started)) s"
  [ -z "$tiny" ] || return 0
  "$python" -m diffpo plan "$here/train.yaml" || return 1
  "$python" -m diffpo train "$here/train.yaml" train.compile=regional train.steps=10 || return 1
  "$python" "$root/scripts/gpu_report.py" run "$here/run" "$out/train.json"
}

declare -A limit=([lane]=170 [bench]=130 [train]=170)
failed=0
cd "$work" || exit 2
export -f lane bench train
export root python out work tiny seconds
for step in ${steps//,/ }; do
  name=${step%%:*}
  [ -n "${limit[$name]:-}" ] || { echo "gpu_check: there is no step $name" >&2; exit 2; }
  seconds=${limit[$name]}
  [ "$step" = "$name" ] || seconds=${step#*:}
  begun=$SECONDS
  echo "== $name (at most $seconds s)"
  timeout --kill-after=5 "$seconds" bash -c "set -o pipefail; $name" >"$out/$name.log" 2>&1
  code=$?
  case $code in
    0) said=ok ;;
    124 | 137) said="ran into its limit of $seconds s"; failed=1 ;;
    *) said="failed with exit code $code"; failed=1; tail -n 25 "$out/$name.log" ;;
  esac
  echo "$name: $said after $((SECONDS - begun)) s" | tee -a "$work/steps.txt"
done
"$python" "$root/scripts/gpu_report.py" tables "$out" "$work/steps.txt" | tee "$out/summary.txt"
exit $failed

#!/usr/bin/env bash
# Check diffpo on a bare GPU machine: torch is there, a network is not. All within 8 minutes; small tables come last.
#
#     scripts/gpu_wheels.sh WHEELS                            where there is a network; then carry the tree and WHEELS
#     scripts/gpu_check.sh --out DIR --wheels WHEELS          there
#     scripts/gpu_check.sh --out DIR --tiny --steps all       on a CPU: small sizes, to see that the script itself works
#
# --steps lane,bench,train   which steps, in this order; each ends at its own limit (NAME:SECONDS sets another one):
#     lane     tests/gpu: precision, compilation, attention, optimizers, resuming, generation, encoding      (170 s)
#     bench    the update at full size, the best settings first, as many as the time allows                  (140 s)
#     train    diffpo train, encoding and a checkpoint in the background included, on a folder of Stable
#              Diffusion 1.5's size with random weights; diffpo plan of it; then the run goes on             (160 s)
#   and, for further leases of such a machine (`all` is every step, some 20 minutes):
#     check    how near fused gradients are to plain ones at full size                                       (130 s)
#     profile  where the time of an update goes, kernel by kernel                                            (110 s)
#     kernels  torch's attention kernels and the layouts of images, one by one                               (140 s)
#     compile  regional and whole compilation of a transformer                                               (300 s)
#     feed     encoding, generation and scoring, images per second                                           (160 s)
#     saving   what a checkpoint costs the loop: of a small network, and of a full one                       (170 s)
#
# It writes a JSON file for each step, a log of each and summary.txt into DIR: nothing else outside /tmp. Steps of an
# earlier call that left their files in DIR are in the tables again. The exit code is 0 if every step did what it
# should, 1 if one did not, 2 if something is missing.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out="" steps="lane,bench,train" wheels="" tiny=""
usage() { sed -n '2,25s/^# \{0,1\}//p' "$0"; exit 2; }
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
declare -A limit=([lane]=170 [bench]=140 [train]=160 [check]=130 [profile]=110 [kernels]=140 [compile]=300 [feed]=160
  [saving]=170)
[ "$steps" != all ] || steps=lane,bench,train,check,profile,kernels,compile,feed,saving
for step in ${steps//,/ }; do
  [ -n "${limit[${step%%:*}]:-}" ] || { echo "gpu_check: there is no step ${step%%:*}" >&2; exit 2; }
done
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

sweep() { # NAME ROW...: measure rows; small ones take the place of all where the machine has no GPU
  local name=$1 how=(--seconds $((seconds - 20))) # Python starts meanwhile
  shift
  if [ -n "$tiny" ]; then
    how+=(--mixed-precision no)
    case $name in
      check) set -- "tiny-sd15 full batch=2 check=1 timed=0" ;;
      compile) set -- "tiny-sd3 lora batch=2 compile=regional timed=0 limit=280" ;;
      *) set -- "tiny-sd15 full batch=2 timed=0" "tiny-sdxl lora batch=2 accumulate=2 method=smpo timed=0" ;;
    esac
  fi
  local segments=expandable_segments:True # rows of many sizes share the memory
  PYTORCH_ALLOC_CONF=$segments PYTORCH_CUDA_ALLOC_CONF=$segments \
    "$python" "$root/scripts/bench_sweep.py" --out "$out/$name.json" "${how[@]}" "$@"
}

# The first row waits for Triton, which compiles the fused kernels once for all rows.
bench() {
  sweep bench "sd15@512 full batch=32,24 timed=2.5 limit=60" "sd15@512 lora batch=48,32 timed=2.5 limit=30" \
    "sdxl@1024 lora batch=8,6 limit=30" "sdxl@1024 full batch=8,6 checkpointing=0.5 optimizer=adafactor limit=30" \
    "sd15@512 full batch=16 accumulate=4 method=smpo timed=8 limit=40" \
    "sd15@512 full batch=16 accumulate=4 method=inpo timed=6 limit=40" "sd15@512 full batch=24 method=smpo limit=30"
}

check() {
  sweep check "sd15@512 full batch=4 check=1 timed=1 limit=60" "sd15@512 lora batch=4 check=1 timed=1 limit=30" \
    "sdxl@1024 lora batch=1 check=1 timed=1 limit=30" \
    "sdxl@1024 full batch=1 check=1 timed=1 optimizer=adafactor checkpointing=1 limit=40"
}

profile() {
  sweep profile "sd15@512 full batch=16 profile=1 timed=1 limit=60" "sd15@512 lora batch=16 profile=1 timed=1 limit=30" \
    "sdxl@1024 lora batch=4 profile=1 timed=1 limit=30" "sd15@512 full batch=16 method=smpo profile=1 timed=3 limit=30"
}

kernels() {
  local order each rows=("sd15@512 full batch=16 timed=2 limit=60")
  for order in cudnn+flash+efficient flash+efficient efficient; do
    rows+=("sd15@512 full batch=16 kernels=$order timed=2 limit=25")
  done
  for each in "channels_last=1" "channels_last=0" "channels_last=1 benchmark=1"; do
    rows+=("sd15@512 full batch=16 fused=0 $each timed=2 limit=25")
  done
  sweep kernels "${rows[@]}" "sd15@512 full batch=16 benchmark=1 timed=2 limit=40"
}

compile() {
  sweep compile "sd35m@1024 lora batch=4,3 compile=regional check=1 limit=130" \
    "sd35m@1024 lora batch=4,3 compile=whole limit=160"
}

model() { # make the random folder, once
  [ -f "$work/model/train.yaml" ] ||
    "$python" "$root/scripts/random_sd15.py" "$work/model" ${tiny:+--tiny --dtype float32}
}

train() {
  local here=$work/model started=$SECONDS
  model || return 1
  echo "made in $((SECONDS - started)) s"
  "$python" -m diffpo train "$here/train.yaml" || return 1
  "$python" "$root/scripts/gpu_report.py" run "$here/run" "$out/train.json" || return 1
  echo "trained after $((SECONDS - started)) s"
  "$python" -m diffpo plan "$here/train.yaml" || return 1
  "$python" -m diffpo train "$here/train.yaml" train.steps=10 || return 1
  "$python" "$root/scripts/gpu_report.py" run "$here/run" "$out/train.json"
}

feed() {
  local how=(--images 1024)
  [ -z "$tiny" ] || how=(--tiny --images 8 --steps 1)
  "$python" "$root/scripts/bench_feed.py" encode generate score --seconds $((seconds - 30)) "${how[@]}" \
    --json "$out/feed.json"
}

saving() {
  local here=$work/model pixels=512 how=(--updates 12 --every 6 --rounds 3) full=(--updates 24 --every 12 --rounds 1)
  local more=(train.batch=16 train.mixed_precision=bf16)
  [ -z "$tiny" ] || { pixels=64 how=(--updates 1 --every 1 --rounds 1) full=(--updates 2 --every 1 --rounds 1) more=(); }
  "$python" "$root/scripts/bench_saving.py" "${how[@]}" --json "$out/saving.json" || return 1
  model || return 1
  "$python" "$root/scripts/bench_saving.py" "${full[@]}" --folder "$work" --json "$out/saving-full.json" "${more[@]}" \
    "model.path=$here/pipeline" data.name=pairs "data.path=$here/pairs/pairs.jsonl" "data.resolution=$pixels"
}

failed=0
cd "$work" || exit 2
export -f lane sweep bench check profile kernels compile model train feed saving
export root python out work tiny seconds
for step in ${steps//,/ }; do
  name=${step%%:*}
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

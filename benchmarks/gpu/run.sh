#!/usr/bin/env bash
# On the GPU machine, from the checkout's root; needs no network.
#   bash benchmarks/gpu/run.sh FOLDER main    installs, then every step but TensorRT-RTX; results in FOLDER, line by line
#   bash benchmarks/gpu/run.sh FOLDER steps correlation_kernel "pytorch resnet101 --compile"    some of them, in that order
#   bash benchmarks/gpu/run.sh FOLDER rtx1    (in the next transfer: keeps the first half)
#   bash benchmarks/gpu/run.sh FOLDER rtx2    (and in the one after it: runs TensorRT-RTX)
# --dry before the last word runs on a CPU what can run there. SECONDS_IN_ALL (default 480) ends the whole early. KIT_QUIET=1
# compiles nothing ahead beside the steps: nothing disturbs their timings, and the first of them waits longer.
set -uo pipefail
out=$(cd "$1" && pwd) && shift
[ "$1" = --dry ] && export KIT_DRY=1 && shift
part=$1 repo=$PWD work=/tmp/kit begun=$(date +%s) all=${SECONDS_IN_ALL:-480}
mkdir -p "$work/models" "$work/main"
export KIT_CARRIED=$work/main KIT_MODELS=$work/models KIT_RESULTS=$out/results-$part.jsonl
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY PYTHONPATH=$work/ort:$work/site:$repo # the clone runs as it lies
exec > >(tee "$out/log-$part.txt") 2>&1

left() { echo $((all - $(date +%s) + begun)); }
run() { # LIMIT STEP ARGUMENTS...
  local limit=$1 rest
  shift
  rest=$(left)
  [ "$rest" -lt "$limit" ] && limit=$rest
  if [ "$limit" -lt 8 ]; then echo "== $* left out: no time" && return; fi
  echo "== $* (at most $limit s, $(( $(date +%s) - begun )) s gone)"
  (cd "$work" && timeout -k 5 "$limit" python3 -m "cats.benchmarks.gpu.$@")
  local status=$?
  [ $status = 0 ] || echo "{\"step\": \"$1\", \"name\": \"ended early\", \"status\": $status, \"limit_s\": $limit}" >>"$KIT_RESULTS"
}

install() {
  cp -r "$repo"/.gpu/main/. "$work/main/"
  local site=$work/site
  rm -rf "$site" "$work/ort" && mkdir -p "$site" "$work/ort"
  python3 - "$work" <<'P' &
import lzma, sys, tarfile
with lzma.open(f"{sys.argv[1]}/main/ort.tar.xz") as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
    archive.extractall(f"{sys.argv[1]}/ort", filter="data")
P
  local unpacking=$!
  python3 -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
    "$work"/main/wheels/*.whl
  cc -std=c11 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -DCATS_BUILD -I"$repo"/runtime/c/include -I"$repo"/runtime/c/src \
    "$repo"/runtime/c/src/*.c -shared -Wl,-soname,libcats.so -pthread -ldl -lm -o "$repo/runtime/c/libcats.so"
  wait $unpacking
  du -sh "$work/ort" | cut -f1
}

libraries() { # CUDA's, of PyTorch: ONNX Runtime looks for them beside itself only
  export LD_LIBRARY_PATH=$(python3 -c 'import glob, importlib.util as u
print(":".join(p for r in u.find_spec("nvidia").submodule_search_locations for p in sorted(glob.glob(r + "/*/lib"))))'):${LD_LIBRARY_PATH:-}
}

declare -A limits=(
  [machine]=40 [correlation_kernel]=130 [tensorrt_backend]=60 [libcats_cuda]=45 [onnxruntime_cuda]=140 [pck]=60
  [pytorch]=150 [layers]=110 [marked_tests]=80 [bench]=200 [tensorrt_rtx]=150 [export_models]=400
)

prepare() { # installs, and starts what goes on beside the steps, also of a later call: exports and torch.compile's caches
  [ -f "$work/ready" ] || install
  libraries
  [ -f "$work/ready" ] && return
  touch "$work/ready"
  echo "== installed after $(( $(date +%s) - begun )) s"
  if [ -n "${KIT_DRY:-}" ]; then
    run 400 export_models
  else # on half of the processors, so that the timings have the others
    local half=$(($(nproc) / 2))
    beside() { (cd "$work" && OMP_NUM_THREADS=$half exec setsid taskset -c "$half-$(($(nproc) - 1))" timeout 500 python3 -m "cats.benchmarks.gpu.$@") & }
    beside export_models
    [ -n "${KIT_QUIET:-}" ] && return
    beside pytorch resnet101 --warm --fused >"$work/log-warm.txt" 2>&1
    beside pytorch resnet101 --warm --fused --tune >"$work/log-tune.txt" 2>&1
  fi
}

case $part in
  main)
    rm -f "$work/ready"
    prepare
    for step in machine correlation_kernel tensorrt_backend libcats_cuda "pytorch resnet101" onnxruntime_cuda pck \
      "pytorch resnet101 --compile --fused" "pytorch resnet101 --compile --fused --tune" marked_tests "pytorch cats-tiny" bench; do
      run "${limits[${step%% *}]}" $step
    done
    ;;
  rtx1) mkdir -p "$work/main/rtx1" && cp "$repo"/.gpu/rtx1/* "$work/main/rtx1/" ;;
  rtx2)
    libraries
    mkdir -p "$work/main/rtx2" && cp "$repo"/.gpu/rtx2/* "$work/main/rtx2/"
    run 150 tensorrt_rtx
    ;;
  steps) # some of them, each with its arguments: steps correlation_kernel "pytorch resnet101 --compile"
    shift
    prepare
    run "${limits[machine]}" machine
    for step in "$@"; do run "${limits[${step%% *}]}" $step; done
    ;;
  *) echo "$part: neither main, steps, rtx1 nor rtx2" >&2 && exit 2 ;;
esac
python3 -m cats.benchmarks.gpu.table "$KIT_RESULTS" 2>/dev/null
echo "== done after $(( $(date +%s) - begun )) s"
sleep 1 # for tee

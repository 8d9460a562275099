#!/usr/bin/env bash
# On the GPU machine, from the checkout's root; needs no network.
#   bash benchmarks/gpu/run.sh FOLDER main    installs, then every step but TensorRT-RTX; results in FOLDER, line by line
#   bash benchmarks/gpu/run.sh FOLDER rtx1    (in the next transfer: keeps the first half)
#   bash benchmarks/gpu/run.sh FOLDER rtx2    (and in the one after it: runs TensorRT-RTX)
# --dry before the last word runs on a CPU what can run there. SECONDS_IN_ALL (default 480) ends the whole early.
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
  local site=$work/site new
  rm -rf "$site" "$work/ort" && mkdir -p "$site" "$work/ort"
  python3 - "$work" <<'P' &
import lzma, sys, tarfile
with lzma.open(f"{sys.argv[1]}/main/ort.tar.xz") as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
    archive.extractall(f"{sys.argv[1]}/ort", filter="data")
P
  local unpacking=$!
  new=$(python3 -c 'import cuda.core as c; print(int(c.__version__.split(".")[0] == "0"))' 2>/dev/null || echo 1)
  python3 -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
    "$work"/main/wheels/*.whl $([ "$new" = 1 ] && echo "$work"/main/wheels-cuda/*.whl)
  cc -std=c11 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -DCATS_BUILD -I"$repo"/runtime/c/include -I"$repo"/runtime/c/src \
    "$repo"/runtime/c/src/*.c -shared -Wl,-soname,libcats.so -pthread -ldl -lm -o "$repo/runtime/c/libcats.so"
  wait $unpacking
  du -sh "$work/ort" | cut -f1
}

libraries() { # CUDA's, of PyTorch: ONNX Runtime looks for them beside itself only
  export LD_LIBRARY_PATH=$(python3 -c 'import glob, importlib.util as u
print(":".join(p for r in u.find_spec("nvidia").submodule_search_locations for p in sorted(glob.glob(r + "/*/lib"))))'):${LD_LIBRARY_PATH:-}
}

case $part in
  main)
    install
    libraries
    echo "== installed after $(( $(date +%s) - begun )) s"
    if [ -n "${KIT_DRY:-}" ]; then
      run 400 export_models
    else # on half of the processors, so that the timings have the others; torch.compile fills its caches there too
      half=$(($(nproc) / 2))
      beside() { (cd "$work" && OMP_NUM_THREADS=$half exec taskset -c "$half-$(($(nproc) - 1))" timeout 300 python3 -m "cats.benchmarks.gpu.$@") & }
      beside export_models
      beside pytorch resnet101 --warm >"$out/log-warm.txt" 2>&1
    fi
    run 40 machine
    run 130 correlation_kernel
    run 45 tensorrt_backend
    run 45 libcats_cuda
    run 150 pytorch resnet101
    run 140 onnxruntime_cuda
    run 120 pytorch resnet101 --compile
    run 80 marked_tests
    run 60 pytorch cats-tiny
    run 60 bench
    kill %1 %2 2>/dev/null
    ;;
  rtx1) mkdir -p "$work/main/rtx1" && cp "$repo"/.gpu/rtx1/* "$work/main/rtx1/" ;;
  rtx2)
    libraries
    mkdir -p "$work/main/rtx2" && cp "$repo"/.gpu/rtx2/* "$work/main/rtx2/"
    run 150 tensorrt_rtx
    ;;
  *) run 300 "$@" ;; # one step again, with its arguments
esac
python3 -m cats.benchmarks.gpu.table "$KIT_RESULTS" 2>/dev/null
echo "== done after $(( $(date +%s) - begun )) s"
sleep 1 # for tee

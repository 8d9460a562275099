#!/usr/bin/env bash
# On a machine with a network and no GPU: makes CHECKOUT/.gpu, which git ignores, in parts that fit a transfer.
#   prepare.sh [CHECKOUT] [--no-rtx]
# .gpu/main  wheels, ONNX Runtime for CUDA, a small model (about 36 MiB)
# .gpu/rtx1, .gpu/rtx2  TensorRT-RTX in two halves (about 30 MiB each)
# What takes minutes is kept in $CACHE (~/.cache/gpukit) and not made twice.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$PWD rtx=1
for word in "$@"; do
  case $word in
    --no-rtx) rtx=0 ;;
    *) repo=$(cd "$word" && pwd) ;;
  esac
done
kit=$repo/.gpu cache=${CACHE:-$HOME/.cache/gpukit}
python=${PYTHON:-$([ -x "$repo/.venv/bin/python" ] && echo "$repo/.venv/bin/python" || echo python3)}
mkdir -p "$repo/.git/info" "$cache"
grep -qx /.gpu/ "$repo/.git/info/exclude" 2>/dev/null || echo /.gpu/ >>"$repo/.git/info/exclude"
rm -rf "$kit"
mkdir -p "$kit/main/wheels" "$kit/main/models"

# 1. Wheels for Python 3.12 on x86-64 that the GPU machine lacks.
fetch() { # FOLDER PACKAGE...
  local folder=$1 platforms=()
  shift
  for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 -d "$folder" "$@"
}
[ -d "$cache/wheels" ] || { fetch "$cache/wheels.new" jsonschema jsonschema-specifications referencing rpds-py &&
  mv "$cache/wheels.new" "$cache/wheels"; }
cp "$cache"/wheels/*.whl "$kit/main/wheels/"

# 2. ONNX Runtime for CUDA 13, without the machine code of other GPUs: 256 MB become about 25.
ort=$cache/ort-1.31.1.tar.xz
if [ ! -f "$ort" ]; then
  rm -rf "$cache/ort" && mkdir -p "$cache/ort/tree"
  fetch "$cache/ort" onnxruntime-gpu==1.31.1
  "$python" -m pip install -q --disable-pip-version-check --target "$cache/ort/site" zstandard
  PYTHONPATH=$cache/ort/site "$python" "$here/slim_ort.py" "$cache"/ort/onnxruntime_gpu-*.whl "$cache/ort/tree"
  # Like beside like, for the compressor: the two libraries with the same code inside, then the rest.
  (cd "$cache/ort/tree" && find . -type f ! -name '*.so*' | sort >../list &&
    find . -name '*pybind11_state*' -o -name 'libonnxruntime.so*' | sort >>../list &&
    find . -name 'libonnxruntime_providers_*' | sort >>../list &&
    tar --create --owner=0 --group=0 --mtime=@0 --no-recursion --files-from=../list) |
    xz --x86 --lzma2=preset=6,dict=64MiB -T1 >"$ort.new"
  mv "$ort.new" "$ort" && rm -rf "$cache/ort"
fi
cp "$ort" "$kit/main/ort.tar.xz"

# 3. A small quantized model.
int8=$kit/main/models/cats-tiny.int8.onnx
(cd "$repo" && "$python" -m cats.calibration.cli assets/cats-tiny.onnx --images assets --as-is -o "$int8") >/dev/null 2>&1 || true # it says "not verified": few photos
[ -f "$int8" ] || echo "no INT8 model: install the project with [calibrate] first" >&2

# 4. Photos with keypoints, for the PCK on the GPU; git ignores the folder that they travel in.
shared=${CATS_SHARED:-$repo/../shared}
[ ! -d "$shared/data/PF-WILLOW" ] || cp -r "$shared/data/PF-WILLOW" "$kit/main/"

# 5. TensorRT-RTX: its two libraries in halves, for the attempt on a GPU that it is not documented for.
if [ $rtx = 1 ]; then
  mkdir -p "$kit/rtx1" "$kit/rtx2" "$kit/main/wheels-rtx"
  if [ ! -f "$cache/rtx.xz" ]; then
    rm -rf "$cache/rtx" && mkdir -p "$cache/rtx"
    fetch "$cache/rtx" tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
    (cd "$cache/rtx" && "$python" -m zipfile -e tensorrt_rtx_cu13_libs-*.whl .)
    one=$cache/rtx/tensorrt_rtx_libs/libtensorrt_rtx.so.1 two=$cache/rtx/tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1
    stat -c %s "$one" "$two" >"$cache/rtx-sizes"
    cp "$cache"/rtx/*bindings*.whl "$cache/"
    cat "$one" "$two" | xz --x86 --lzma2=preset=6,dict=64MiB -T1 >"$cache/rtx.xz.new"
    mv "$cache/rtx.xz.new" "$cache/rtx.xz" && rm -rf "$cache/rtx"
  fi
  cp "$cache/rtx-sizes" "$kit/main/" && cp "$cache"/tensorrt_rtx_cu13_bindings-*.whl "$kit/main/wheels-rtx/"
  split -n 2 -d "$cache/rtx.xz" "$cache/rtx.xz."
  mv "$cache/rtx.xz.00" "$kit/rtx1/" && mv "$cache/rtx.xz.01" "$kit/rtx2/"
fi

# What the steps do not read stays behind, or the tree and a part are too large together; git sparse-checkout disable
# brings it back.
(cd "$repo" && git sparse-checkout set --no-cone '/*' '!/assets/cats-tiny.encoder.onnx' '!/assets/cats-tiny.matcher.onnx' \
  '!/assets/cats-tiny.int8.onnx')
tracked=$(cd "$repo" && git ls-files -z --cached --others --exclude-standard | { xargs -0 du -cb 2>/dev/null || true; } | tail -1 | cut -f1)
for part in "$kit"/*/; do
  echo "$(basename "$part"): $(((tracked + $(du -sb "$part" | cut -f1)) >> 20)) MiB with the working tree, of 64"
done

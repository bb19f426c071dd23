#!/usr/bin/env bash
# Builds and installs the C library, then segments an example picture with it.
# Usage: bash scripts/native.sh [FOLDER]     FOLDER gets native/ (header, library, CMake and pkg-config files) and out/native.*.png.
# The bundle is $DIGSEG_BUNDLE, digseg-tiny-fp16 in FOLDER where scripts/demo.sh made one, or the one that comes with the project.
# Needs CMake, a C++17 compiler and ONNX Runtime (the extra [cpu]).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$(cd "${1:-$PWD}" && pwd)"
shipped="$root/digseg_engine/assets/digseg-tiny-fp16"
[ -f "$folder/digseg-tiny-fp16/manifest.json" ] && shipped="$folder/digseg-tiny-fp16"
bundle="${DIGSEG_BUNDLE:-$shipped}"
build="${DIGSEG_NATIVE_BUILD:-$root/kernels/build}"
cmake -S "$root/kernels" -B "$build" -DDIGSEG_CUDA="${DIGSEG_CUDA:-OFF}"
cmake --build "$build" --parallel 2
cmake --install "$build" --prefix "$folder/native" > /dev/null
# The library loads ONNX Runtime when it needs it; here the one of the Python package, unless another is named.
if [ -z "${DIGSEG_ONNXRUNTIME:-}" ]; then
  python="$([ -x "$root/.venv/bin/python" ] && [ -z "${VIRTUAL_ENV:-}" ] && echo "$root/.venv/bin/python" || echo python3)"
  find='import glob, os, onnxruntime; print(glob.glob(os.path.join(os.path.dirname(onnxruntime.__file__), "capi", "libonnxruntime.so*"))[0])'
  if ! DIGSEG_ONNXRUNTIME="$("$python" -c "$find" 2> /dev/null)"; then
    echo "native.sh: ONNX Runtime is not there for $python; run bash scripts/demo.sh first, or pip install '.[cpu]', or set DIGSEG_ONNXRUNTIME to libonnxruntime.so" >&2
    exit 1
  fi
  export DIGSEG_ONNXRUNTIME
fi
mkdir -p "$folder/out"
"$build/examples/segment" "$bundle" "$root/examples/aerial.png" "$folder/out/native" road building water
echo "done: library in $folder/native, masks in $folder/out/native.*.png"

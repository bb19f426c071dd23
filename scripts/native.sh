#!/usr/bin/env bash
# Builds and installs the C library, then segments an example picture with it.
# Usage: bash scripts/native.sh [FOLDER]     FOLDER holds the bundle digseg-tiny-fp16 (scripts/demo.sh makes it) and gets
# native/ (header, library, CMake and pkg-config files) and out/native.*.png. Needs CMake and a C++17 compiler.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$(cd "${1:-$PWD}" && pwd)"
bundle="${DIGSEG_BUNDLE:-$folder/digseg-tiny-fp16}"
build="${DIGSEG_NATIVE_BUILD:-$root/kernels/build}"
cmake -S "$root/kernels" -B "$build" -DDIGSEG_CUDA="${DIGSEG_CUDA:-OFF}"
cmake --build "$build" --parallel 2
cmake --install "$build" --prefix "$folder/native" > /dev/null
# The library loads ONNX Runtime when it needs it; here the one of the Python package, unless another is named.
if [ -z "${DIGSEG_ONNXRUNTIME:-}" ]; then
  python="$([ -x "$root/.venv/bin/python" ] && [ -z "${VIRTUAL_ENV:-}" ] && echo "$root/.venv/bin/python" || echo python3)"
  DIGSEG_ONNXRUNTIME="$("$python" -c 'import glob, os, onnxruntime; print(glob.glob(os.path.join(os.path.dirname(onnxruntime.__file__), "capi", "libonnxruntime.so*"))[0])')"
  export DIGSEG_ONNXRUNTIME
fi
mkdir -p "$folder/out"
"$build/examples/segment" "$bundle" "$root/examples/aerial.png" "$folder/out/native" road building water
echo "done: library in $folder/native, masks in $folder/out/native.*.png"

#!/usr/bin/env bash
# Does the TensorRT backend compile with the headers of a release? Nothing is linked or run.
# Usage: bash kernels/tests/tensorrt_headers.sh CUDA_INCLUDE TENSORRT_INCLUDE...     (folders of cuda_runtime_api.h and NvInfer.h;
# the headers of every release are in the folder include/ of the TensorRT repository's release branches)
set -euo pipefail
kernels="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cuda="${1:?usage: tensorrt_headers.sh CUDA_INCLUDE TENSORRT_INCLUDE...}"
shift
for folder in "$@"; do
  version="$(echo -e '#include <NvInferVersion.h>\nDIGSEG_FOUND NV_TENSORRT_MAJOR.NV_TENSORRT_MINOR.NV_TENSORRT_PATCH' |
    "${CXX:-g++}" -x c++ -E -P -I "$folder" - | sed -n 's/ //g;s/^DIGSEG_FOUND//p')"
  "${CXX:-g++}" -std=c++17 -fsyntax-only -Wall -Wextra -Werror -DDIGSEG_WITH_TENSORRT -I "$kernels/include" -I "$kernels/src" \
    -isystem "$folder" -isystem "$cuda" "$kernels/src/trt_backend.cpp"
  echo "TensorRT $version: compiles"
done

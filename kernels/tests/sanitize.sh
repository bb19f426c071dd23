#!/usr/bin/env bash
# The stress program under AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer.
# Usage: bash kernels/tests/sanitize.sh BUNDLE [ONNXRUNTIME_LIBRARY] [RUNS CREATES CALLS]     default 1000 500 10000
set -euo pipefail
kernels="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bundle="${1:?usage: sanitize.sh BUNDLE [ONNXRUNTIME_LIBRARY] [RUNS CREATES CALLS]}"
[ -z "${2:-}" ] || export DIGSEG_ONNXRUNTIME="$2"
build="$kernels/build/sanitize"
cmake -S "$kernels" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDIGSEG_SANITIZE=address,undefined -DDIGSEG_CUDA=OFF \
  -DDIGSEG_STRESS=ON -DDIGSEG_EXAMPLES=OFF > /dev/null
cmake --build "$build" --parallel 2 > /dev/null
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
"$build/tests/stress" threads "$bundle" "${3:-1000}" 4
"$build/tests/stress" create "$bundle" "${4:-500}"
"$build/tests/stress" kept "$bundle" 20
"$build/tests/stress" hostile "$bundle" "${5:-10000}" 1
echo "clean under ASan, UBSan and LSan"

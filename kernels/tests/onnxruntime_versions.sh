#!/usr/bin/env bash
# One binary against several releases of ONNX Runtime, each from its wheel, and one that is too old.
# Usage: bash kernels/tests/onnxruntime_versions.sh LIBDIGSEG_FOLDER SEGMENT_PROGRAM BUNDLE PICTURE.png
set -euo pipefail
library="${1:?usage: onnxruntime_versions.sh LIBDIGSEG_FOLDER SEGMENT_PROGRAM BUNDLE PICTURE.png}" program="$2" bundle="$3" picture="$4"
room="$(mktemp -d)"
trap 'rm -rf "$room"' EXIT
export DIGSEG_CACHE="$room/cache"
first=""
for version in 1.22.1 1.24.4 1.32.0 1.21.0; do
  python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$room/$version" "onnxruntime==$version"
  python3 -m zipfile -e "$room/$version"/*.whl "$room/$version"
  export DIGSEG_ONNXRUNTIME="$(echo "$room/$version"/onnxruntime/capi/libonnxruntime.so.*)" LD_LIBRARY_PATH="$library"
  if [ "$version" = 1.21.0 ]; then
    if text="$("$program" "$bundle" "$picture" "$room/m" road 2>&1)"; then echo "1.21.0 was accepted" >&2; exit 1; fi
    case "$text" in *"1.21.0 is too old"*) echo "1.21.0 refused: $text" ;; *) echo "another error: $text" >&2; exit 1 ;; esac
    continue
  fi
  for start in first second; do  # the second opens the graphs that the first one kept
    "$program" "$bundle" "$picture" "$room/m" road building trees | tail -1
    sum="$(cat "$room"/m.*.png | sha256sum | cut -c1-16)"
    echo "onnxruntime $version, $start start: masks $sum"
    [ -z "$first" ] || [ "$first" = "$sum" ] || { echo "masks differ between releases" >&2; exit 1; }
    first="$sum"
  done
done

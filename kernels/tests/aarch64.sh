#!/usr/bin/env bash
# Cross-build for aarch64 and run under emulation; logits and masks must agree with the x86-64 build.
# Needs g++-aarch64-linux-gnu and qemu-user 10 (Debian 13's; version 7.2 crashes inside ONNX Runtime's start-up).
# Usage: bash kernels/tests/aarch64.sh BUNDLE X86_ONNXRUNTIME_LIBRARY [PICTURES_FOLDER]
# A folded bundle is asked for all of its names; of one exported with --labels-only masks alone are compared.
# QEMU=qemu-aarch64 is the emulator, QEMU_CPU=cortex-a76 the processor, SIZES="64 128" the pixels the model works at.
set -euo pipefail
kernels="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bundle="${1:?usage: aarch64.sh BUNDLE X86_ONNXRUNTIME_LIBRARY [PICTURES_FOLDER]}" x86="$2" pictures="${3:-$kernels/../examples}"
version="$(basename "$x86" | sed 's/libonnxruntime.so.//')"
room="$(mktemp -d)"
trap 'rm -rf "$room"' EXIT
for kind in x86 aarch64; do
  toolchain=()
  [ "$kind" = x86 ] || toolchain=(-DCMAKE_TOOLCHAIN_FILE="$kernels/cmake/aarch64.cmake")
  cmake -S "$kernels" -B "$kernels/build/compare-$kind" -DCMAKE_BUILD_TYPE=Release -DDIGSEG_CUDA=OFF -DDIGSEG_STRESS=ON "${toolchain[@]}" > /dev/null
  cmake --build "$kernels/build/compare-$kind" --parallel 2 > /dev/null
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --dest "$room" "onnxruntime==$version"
python3 -m zipfile -e "$room"/*.whl "$room/wheel"
sysroot="${SYSROOT:-/usr/aarch64-linux-gnu}"
export QEMU_CPU="${QEMU_CPU:-cortex-a76}"
for size in ${SIZES:-64 128}; do
  DIGSEG_ONNXRUNTIME="$x86" "$kernels/build/compare-x86/tests/dump" "$bundle" "$pictures" "$room/x86" "$size" > /dev/null
  DIGSEG_ONNXRUNTIME="$(echo "$room"/wheel/onnxruntime/capi/libonnxruntime.so.*)" \
    "${QEMU:-qemu-aarch64}" -L "$sysroot" -E LD_LIBRARY_PATH="$sysroot/lib:$kernels/build/compare-aarch64" \
    "$kernels/build/compare-aarch64/tests/dump" "$bundle" "$pictures" "$room/aarch64" "$size" > /dev/null
  echo -n "$size pixels, $("${QEMU:-qemu-aarch64}" --version | head -1) as $QEMU_CPU: "
  "$kernels/build/compare-x86/tests/dump" compare "$room/x86" "$room/aarch64"
done

#!/usr/bin/env bash
# The diffusers layout in optimum's ONNX Runtime classes: bash tests/export/optimum.sh [FOLDER [CHECKPOINT]]
#
# optimum-onnx pins an older transformers than the project uses, so it gets a virtual environment of its own, which borrows
# the large packages (PyTorch, ONNX Runtime, numpy) from the current one. Exports the reference of the bundled model (or of
# CHECKPOINT), answers in PyTorch, loads the folder with optimum, runs every stage and four steps with diffusers' scheduler, compares.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
room="${1:-$(mktemp -d)}"
model=(${2:+"$2"})
mkdir -p "$room"
python -m venv "$room/venv"
site="$("$room/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/borrowed.pth"
"$room/venv/bin/pip" install --quiet "optimum-onnx==0.1.0" "optimum==2.1.0" "diffusers==0.35.2"
rm -rf "$room/reference"
digseg-export "${model[@]}" --layout diffusers --precision fp32 -o "$room/reference"
python "$root/tests/export/optimum_check.py" expect "$room" "${model[@]}"
PYTHONPATH="" "$room/venv/bin/python" "$root/tests/export/optimum_check.py" check "$room"

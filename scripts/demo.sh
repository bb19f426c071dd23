#!/usr/bin/env bash
# From nothing to masks: install, export the bundled model to a verified fp16 bundle, segment the example pictures.
# Usage: bash scripts/demo.sh [FOLDER]     results go to FOLDER (default: the current one)
set -euo pipefail
folder="${1:-$PWD}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" export
mkdir -p "$folder" && cd "$folder"
digseg-export --precision fp16
digseg segment "$root/examples/shapes.png" -p "red ring" -p "green ring" -p "the star that is green" -p "anything blue" -o out
digseg segment "$root/examples/cells.png" -p nucleus -p cell -p lesion -o out
digseg segment "$root/examples/crops.png" -p "crop row" -p weed -p soil -o out
digseg segment "$root/examples/aerial.png" -p road -p building -p water -p trees -p field -o out
echo "done: masks and overlays are in $(pwd)/out, the bundle is $(pwd)/digseg-tiny-fp16"
[ ! -f "$root/.venv/bin/activate" ] || [ "${VIRTUAL_ENV:-}" != "$root/.venv" ] || echo "in a new shell, type first: source $root/.venv/bin/activate"

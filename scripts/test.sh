#!/usr/bin/env bash
# Everything that must hold: style, types, tests. Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
cd "$root"
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS=1
# A worker that dies ends the run: with another one in its place the run would wait for the tests that died with it.
python -m pytest -n "${DIGSEG_TEST_WORKERS:-2}" --dist loadgroup --max-worker-restart 0 --durations 15 "$@"

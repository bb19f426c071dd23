#!/usr/bin/env bash
# Plants the errors of scripts/mutants.toml one by one on a copy; every one must make a quick test fail.
# Usage: bash scripts/mutants.sh [--only WORD] [--json FILE]     about ten minutes of two cores
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
export OMP_NUM_THREADS=1
python "$root/scripts/mutants.py" "$@"

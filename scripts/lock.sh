#!/usr/bin/env bash
# Writes constraints.txt: the exact versions of everything that `[dev]` brings, newest of today, for Python 3.11 and later.
# Usage: bash scripts/lock.sh     then run the tests, and commit the file together with what had to change.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
grep -E '^(torch|triton)==' "$root/constraints.txt" > "$folder/pinned.txt" # chosen by hand: a looser range brings CUDA libraries
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --constraint "$folder/pinned.txt" "$root[dev]"
{
  echo "# The versions that the tests were run with, written by scripts/lock.sh. Use: pip install -c constraints.txt -e \".[dev]\""
  cat "$folder/pinned.txt"
  "$folder/venv/bin/pip" freeze | grep -vE '^(torch|triton|digseg-engine)\b' | sed 's/$/ ; python_version >= "3.11"/'
} > "$folder/constraints.txt"
mv "$folder/constraints.txt" "$root/constraints.txt"

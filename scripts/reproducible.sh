#!/usr/bin/env bash
# Build wheel and source archive twice, each from a clean clone of the current commit in a folder of another name, and compare them
# byte by byte. The archives' times are the commit's (SOURCE_DATE_EPOCH). What is equal is left in the folder named.
#   bash scripts/reproducible.sh OUTPUT
# Needs the package `build`; DIGSEG_BUILD_OPTIONS are further options of it, such as --no-isolation without a network.
set -euo pipefail
output=${1:?usage: bash scripts/reproducible.sh OUTPUT}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
commit=$(git -C "$root" rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct "$commit")
export SOURCE_DATE_EPOCH
umask 022
for name in first a-second-one; do
  git clone --quiet --no-local "$root" "$room/$name"
  git -C "$room/$name" -c advice.detachedHead=false checkout --quiet "$commit"
  # shellcheck disable=SC2086
  (cd "$room/$name" && python -m build ${DIGSEG_BUILD_OPTIONS:-} --outdir "$room/$name-dist" . >"$room/$name.log" 2>&1) ||
    { tail -20 "$room/$name.log" >&2; exit 1; }
  python "$root/scripts/same_archive.py" "$room/$name-dist"/*.tar.gz
done
for file in "$room/first-dist"/*; do
  cmp "$file" "$room/a-second-one-dist/$(basename "$file")" ||
    { echo "error: $(basename "$file") differs between two builds of $commit" >&2; exit 1; }
done
mkdir -p "$output"
cp "$room/first-dist"/* "$output"
(cd "$output" && sha256sum ./*.whl ./*.tar.gz)

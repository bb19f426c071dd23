#!/usr/bin/env bash
# Builds containers/cpu.Dockerfile with buildah and tries what it serves: the image's own files as a read-only root, as its own user,
# in a mount namespace; no container runtime, no daemon. Needs root and buildah.
# Usage: bash containers/check.sh IMAGE        IMAGE: what to build on, as python:3.11-slim-bookworm, or one made here from Debian
#        DIGSEG_BUILD_OPTIONS: more options of `buildah build`, such as --isolation chroot where namespaces are not to be had
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tag="digseg-check:cpu" port="${DIGSEG_CHECK_PORT:-9440}" token="of-the-check"
read -ra options <<< "${DIGSEG_BUILD_OPTIONS:-}"
buildah build --format docker "${options[@]}" --build-arg "BASE=$1" -f containers/cpu.Dockerfile -t "$tag" .
container="$(buildah from --pull-never "localhost/$tag")"
room="$(mktemp -d)"
server=""
cleanup() {
  [ -z "$server" ] || kill -KILL -- "-$server" 2> /dev/null || true
  buildah rm "$container" > /dev/null
  rm -rf "$room"
}
trap cleanup EXIT
root="$(buildah mount "$container")"

buildah inspect --type image "localhost/$tag" > "$room/image.json"
python3 - "$room/image.json" > "$room/config" << 'PYTHON'
import json, shlex, sys

config = json.load(open(sys.argv[1]))["Docker"]["config"]
assert config["Healthcheck"]["Test"][0] == "CMD", config["Healthcheck"]
print("user=" + shlex.quote(config["User"]))
print("environment=(" + shlex.join(config["Env"]) + ")")
print("entry=(" + shlex.join(config["Entrypoint"]) + ")")
print("health=(" + shlex.join(config["Healthcheck"]["Test"][1:]) + ")")
PYTHON
source "$room/config"
[ "$user" = 10001:10001 ] || { echo "the image's user is $user" >&2; exit 1; }

cat > "$room/inside.sh" <<'INSIDE'
set -euo pipefail
root="$1" && shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero random urandom; do touch "$root/dev/$name" && mount --bind "/dev/$name" "$root/dev/$name"; done
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot --userspec=10001:10001 --groups= "$root" setpriv --no-new-privs "$@"
INSIDE
run() { unshare --mount -- bash "$room/inside.sh" "$root" env -i "${environment[@]}" "$@"; }

[ "$(run id -u)" = 10001 ]
if run python -c 'open("/opt/digseg/x", "w")' 2> "$room/refused"; then echo "the root can be written" >&2; exit 1; fi
grep -q "Read-only file system" "$room/refused"
if run python -c 'import pip' 2> /dev/null; then echo "pip is in what runs" >&2; exit 1; fi
if run "${entry[@]}" --port "$port" > /dev/null 2> "$room/refused"; then echo "it served without a token" >&2; exit 1; fi
grep -q "give --token" "$room/refused"

setsid unshare --mount -- bash "$room/inside.sh" "$root" env -i "${environment[@]}" DIGSEG_TOKEN="$token" "${entry[@]}" --port "$port" \
  > "$room/said" 2>&1 &
server=$!
for _ in $(seq 600); do
  grep -q "^http://" "$room/said" && break
  kill -0 "$server" 2> /dev/null || { cat "$room/said" >&2; exit 1; }
  sleep 0.5
done
address="http://127.0.0.1:$port"
run "${health[@]//8765/$port}"
[ "$(curl -s -o /dev/null -w '%{http_code}' "$address/v1/models")" = 401 ]
python3 -c 'import os; print("x" * 1500000)' > "$room/large" # over 1 MiB: a form's file that goes to /tmp
[ "$(curl -s -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $token" -F "image=@$room/large" -F prompts=road "$address/v1/segment")" = 422 ]
curl -sf -H "Authorization: Bearer $token" -F image=@examples/aerial.png -F prompts=road "$address/v1/segment" > "$room/answer"
python3 -c 'import json, sys; (mask,) = json.load(open(sys.argv[1]))["masks"]; assert mask["there"] and mask["rle"], mask' "$room/answer"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=""
[ "$code" = 0 ] || { echo "SIGTERM ended it with $code" >&2; exit 1; }
echo "built on $1 and tried: $(du -sm --exclude=proc "$root" | cut -f1) MiB, $(du -sm "$root/opt/digseg" | cut -f1) of them DiGSeg Engine"

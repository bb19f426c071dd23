# Sourced by the other scripts: `source setup.sh EXTRA`. Uses the active virtual environment, or makes .venv beside the
# project, and installs the project with the given extra into it. DIGSEG_SKIP_INSTALL=1 takes the environment as it is;
# DIGSEG_CONSTRAINTS names another file of versions than constraints.txt.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ "${DIGSEG_SKIP_INSTALL:-0}" != 1 ]; then
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, found $(python3 --version)" >&2; exit 1; }
    [ -d "$root/.venv" ] || python3 -m venv "$root/.venv"
    source "$root/.venv/bin/activate"
  fi
  echo "installing digseg-engine[$1] into $VIRTUAL_ENV"
  python -m pip install --quiet --constraint "${DIGSEG_CONSTRAINTS:-$root/constraints.txt}" --editable "$root[$1]"
fi

# What the scripts here have in common; sourced by them.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python
  [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
fi

wrong() {
  printf '%s\n' "$1" >&2
  exit 2
}

# Models, seeds, then overrides: a sweep among several. That a run failed is kept in `status` and
# told at the end; a wrong command ends all of it.
status=0
sweep() {
  MODELS=$1 SEEDS=$2 PYTHON=$python "$root/scripts/multiple_train.sh" "${@:3}"
  local code=$?
  case $code in
    0) ;;
    1) status=1 ;;
    *) exit "$code" ;;
  esac
}

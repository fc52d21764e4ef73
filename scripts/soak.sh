#!/usr/bin/env bash
# Long trials of what docs/guarantees.md promises, with what each came to.
usage() {
  cat <<'END'
scripts/soak.sh [pytest argument ...]

Runs the tests marked soak: the same command twice and with worker processes, on every task; twenty
stops at random moments by each of four signals, ten kills of a sweep; alone, in a sweep and side by
side; five million time steps in the memory of the first; length 10,000 in 2 GB; a thousand runs
compared, and their page opened where Playwright is installed; every wrong command in five seconds;
sixty configurations, drawn; every combination of choices; the fused engine's grid at 150, and
without a cache or a helper; training with engine=compiled. Half an hour on two cores, or a quarter
with -n 2. Arguments go to pytest:

  scripts/soak.sh -k stops

Exit status: that of pytest.
END
}

case ${1-} in -h | --help) usage; exit 0 ;; esac
here=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null) || here=${BASH_SOURCE[0]} # it may be a link
. "$(dirname "$here")/common.sh"
cd "$root" && exec "$python" -m pytest -m soak -vs --durations=0 "$@"

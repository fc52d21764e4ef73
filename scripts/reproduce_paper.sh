#!/usr/bin/env bash
# The results section of the paper: five tasks, three models, several seeds, and one page of it all.
usage() {
  cat <<'END'
scripts/reproduce_paper.sh [--dry-run] [override ...]

Trains every model on every task of Graves, Wayne and Danihelka 2014 with the recipes of this
project, evaluates each run beyond its training, and writes docs/results/paper.md and one offline
page, outputs/comparison/report.html, below this folder. Goes on where it was stopped: what is
finished is left alone. Overrides are those of run_train.py and go to every run.

  TASKS    default "copy repeat_copy associative_recall dynamic_ngrams priority_sort"
  MODELS   default "ntm ntm_feedforward lstm"
  SEEDS    of every model; default 200-202, and 203-204 as well for ntm
  JOBS     runs at a time, default cores / threads
  PYTHON   default .venv/bin/python if there is one and no other environment is active

  --dry-run   print the runs and what each would do

  TASKS=associative_recall MODELS=ntm SEEDS=0-4 scripts/reproduce_paper.sh

Exit status: 0 done, 1 a run failed, 2 the command is wrong, 130 interrupted.
END
}

set -u
here=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null) || here=${BASH_SOURCE[0]} # it may be a link
. "$(dirname "$here")/common.sh"
tasks=${TASKS-copy repeat_copy associative_recall dynamic_ngrams priority_sort}
models=${MODELS-ntm ntm_feedforward lstm}

dry=
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry=1 ;;
  esac
done
for task in $tasks; do
  [ -f "$root/configs/task/$task.yaml" ] && continue
  wrong "TASKS must be of those in configs/task, got $task"
done

has() { # word, list
  case " $2 " in *" $1 "*) return 0 ;; esac
  return 1
}

for task in $tasks; do
  printf '== %s\n' "$task"
  given=("task=$task" "name=paper_$task")
  # Trained as the paper draws: fair coins alone.
  if grep -q '^mix:' "$root/configs/task/$task.yaml"; then given+=(task.mix=0.0); fi
  if [ -n "${SEEDS-}" ]; then
    sweep "$models" "$SEEDS" "${given[@]}" "$@"
  else
    sweep "$models" 200-202 "${given[@]}" "$@"
    if has ntm "$models"; then
      sweep ntm 203-204 "${given[@]}" "$@"
    fi
  fi
done
# A baseline that is stopped where the machine is solved would look worse than it is.
if has copy "$tasks" && has lstm "$models"; then
  printf '== copy, the baseline with five times its budget and its best settings\n'
  sweep lstm "${SEEDS-200-202}" task=copy name=paper_copy_long task.mix=0.0 sequences=200000 \
    curriculum=staged optimizer.lr=6e-3 "$@"
fi
[ -z "$dry" ] || exit "$status"

# Run folder, point, memory size or null, sequences: evaluated unless it was.
evaluate() {
  local line="^$2,drawn,${3/null/[0-9]*},best,$4,"
  grep -q "$line" "$1/eval/results.csv" 2>/dev/null && return
  "$python" "$root/run_eval.py" "run=$1" "at=[$2]" "memory_size=$3" "sequences=$4" >/dev/null ||
    status=1
}

for task in $tasks; do
  for run in outputs/paper_"$task"/*/seed_*; do
    grep -q '"status": "finished"' "$run/result.json" 2>/dev/null || continue
    machine=1
    case $run in */lstm/*) machine= ;; esac
    case $task in
      copy) [ -z "$machine" ] || { evaluate "$run" 500 1100 100 && evaluate "$run" 1000 1100 100; } ;;
      associative_recall)
        evaluate "$run" 15 null 1000
        evaluate "$run" 20 null 1000
        [ -z "$machine" ] || evaluate "$run" 100 1100 100
        ;;
      dynamic_ngrams) evaluate "$run" 200 null 1000 ;;
      priority_sort) evaluate "$run" 20 null 1000 ;;
    esac
  done
done

folders=
for folder in outputs/paper_*; do
  [ -d "$folder" ] && folders=$folders${folders:+,}$folder
done
"$python" "$root/run_compare.py" "runs=[$folders]" || status=1
"$python" "$root/scripts/paper.py" || status=1
exit "$status"

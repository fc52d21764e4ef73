#!/usr/bin/env bash
# The default recipe with one setting changed at a time, and one page of what it comes to.
usage() {
  cat <<'END_OF_USAGE'
scripts/robustness.sh [--dry-run] [override ...]

Trains copy with each of the settings below changed from the default, several seeds each, and
writes docs/results/robustness.md below this folder: solved, when, and whether twenty vectors of
every kind and 120 as drawn come out right. Goes on where it was stopped: what is finished is left
alone. Overrides are those of run_train.py and go to every run.

  ROWS     names of the rows, default all
  SEEDS    default 210-212
  JOBS     runs at a time, default cores / threads
  PYTHON   default .venv/bin/python if there is one and no other environment is active

  --dry-run   print the runs and what each would do

  ROWS="default shifts_2" SEEDS=210 scripts/robustness.sh

Exit status: 0 done, 1 a run failed, 2 the command is wrong, 130 interrupted.

END_OF_USAGE
  printf 'Rows:\n'
  while read -r name overrides; do printf '  %-20s %s\n' "$name" "$overrides"; done <<<"$grid"
}

# A name, and what it changes.
grid='default
bits_4 task.bits=4
bits_16 task.bits=16
lengths_to_10 task.max_length=10
lengths_to_40 task.max_length=40
batch_1 batch_size=1
batch_32 batch_size=32
batch_64 batch_size=64
locations_32 model.network.memory_size=32
locations_512 model.network.memory_size=512
words_of_10 model.network.word_size=10
words_of_40 model.network.word_size=40
controller_50 model.network.controller.hidden_size=50
controller_200 model.network.controller.hidden_size=200
controller_2_layers model.network.controller.num_layers=2
two_read_heads model.network.num_read_heads=2
two_write_heads model.network.num_write_heads=2
shifts_2 model.network.shift_range=2
write_first model.network.read_first=false
no_activation model.network.key_activation=identity model.network.add_activation=identity
learned_weighting model.network.initial_weighting=learned
random_uniform model.network.initial_memory=random model.network.initial_weighting=uniform
feedforward model=ntm_feedforward
staged curriculum=staged
adam optimizer=adam
rmsprop optimizer=rmsprop
graves_rmsprop optimizer=graves_rmsprop
sequences_6000 sequences=6000
sequences_10000 sequences=10000
sequences_15000 sequences=15000'

set -u
here=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null) || here=${BASH_SOURCE[0]} # it may be a link
. "$(dirname "$here")/common.sh"

dry=
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry=1 ;;
  esac
done
rows=${ROWS-$(cut -d' ' -f1 <<<"$grid")}
for row in $rows; do
  grep -q "^$row\( \|$\)" <<<"$grid" && continue
  wrong "ROWS must be of those that --help lists, got $row"
done

for row in $rows; do
  read -r _ changed < <(grep "^$row\( \|$\)" <<<"$grid")
  model=ntm overrides=()
  for change in $changed; do
    case $change in
      model=*) model=${change#model=} ;; # what a sweep is over, not an override of it
      *) overrides+=("$change") ;;
    esac
  done
  printf '== %s\n' "$row"
  sweep "$model" "${SEEDS-210-212}" "name=robustness_$row" callbacks.pictures_every=null \
    ${overrides[@]+"${overrides[@]}"} "$@"
done
[ -z "$dry" ] || exit "$status"
"$python" "$root/scripts/robustness.py" <<<"$grid" || status=1
exit "$status"

#!/usr/bin/env bash
# A sweep on this machine: every model with every seed, each run a process of its own.
usage() {
  cat <<'END'
scripts/multiple_train.sh [--dry-run] [override ...]

Trains every model with every seed on this machine, each run a process of its own. The same command
again leaves finished runs alone, goes on with the others and starts what is missing. Overrides are
those of run_train.py and go to every run.

  MODELS   the models, default "ntm lstm"
  SEEDS    such as 0-9 (the default) or 1,4,7
  JOBS     runs at a time, default cores / threads
  CUDA_VISIBLE_DEVICES   GPUs, default all; runs are shared out over them, several on one
  PYTHON   default .venv/bin/python if there is one and no other environment is active

  --dry-run   print the runs and what each would do

  SEEDS=0-2 JOBS=2 scripts/multiple_train.sh sequences=50000 name=longer

Ctrl-C ends the running runs after their step, a second one at once. Exit status: 0 done, 1 a run
failed, 2 the command is wrong and nothing was written, 130 interrupted. A run that another process
is at is left to it.
END
}

set -u
here=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null) || here=${BASH_SOURCE[0]} # it may be a link
. "$(dirname "$here")/common.sh"

dry=
overrides=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry=1 ;;
    -*) wrong "$argument is no option; known are --dry-run and --help, and the overrides of run_train.py" ;;
    *) overrides+=("$argument") ;;
  esac
done
case ${JOBS:-1} in
  *[!0-9]* | 0*) wrong "JOBS must be a number of runs, at least 1, got '$JOBS'" ;;
esac

# --- What there is to do: one Python for all jobs, which also checks every one of them.

trap 'exit 130' INT TERM
plan=$("$python" -m ntm.training.sweeps plan "$root/configs" "${MODELS-ntm lstm}" "${SEEDS-0-9}" \
  ${overrides[@]+"${overrides[@]}"}) || exit

models=() seeds=() folders=() totals=() states=() notes=() pids=() resumed=() on=()
at_once= gpus=()
while IFS=$'\t' read -r model seed folder total state note; do
  if [ -z "$at_once" ]; then
    at_once=${JOBS:-$model} # the first line is the number of runs that fit, and the GPUs
    [ "$seed" = - ] || IFS=, read -r -a gpus <<<"$seed"
    continue
  fi
  models+=("$model") seeds+=("$seed") folders+=("$folder") totals+=("$total")
  states+=("$state") notes+=("$note") pids+=("") resumed+=("") on+=("")
done <<<"$plan"
jobs=${#models[@]}

label() { printf '%s seed %s' "${models[$1]}" "${seeds[$1]}"; }

widest=0
for ((i = 0; i < jobs; i++)); do
  name=$(label "$i")
  [ ${#name} -le "$widest" ] || widest=${#name}
done

count() { # jobs in any of the given states
  local i state n=0
  for ((i = 0; i < jobs; i++)); do
    for state in "$@"; do [ "${states[i]}" = "$state" ] && n=$((n + 1)); done
  done
  printf %s "$n"
}

if [ -n "$dry" ]; then
  for ((i = 0; i < jobs; i++)); do
    printf "%-10s  %-${widest}s  %s\n" "${states[i]}" "$(label "$i")" "${folders[i]}"
    [ "${notes[i]}" = - ] || printf '%12s%s\n' '' "${notes[i]}"
  done
  exit 0
fi

# --- What can be seen meanwhile: a line a run that is drawn again, or lines of a log.

live=
[ -t 2 ] && [ "${TERM:-dumb}" != dumb ] && live=1
drawn=0 # lines on the screen that the next drawing replaces
drawn_at=-1
logged_at=()

erase() {
  [ "$drawn" -eq 0 ] || printf '\033[%dA\033[J' "$drawn" >&2
  drawn=0
}

say() {
  erase
  printf '%s\n' "$1" >&2
  drawn_at=-1
}

# One line from the records of a run: where it stands, its rate over the last intervals, wrong bits
# or, where the task knows its optimum, bits above it
# at the last validation, time left.
progress() {
  local metrics=${folders[$1]}/metrics.csv
  [ -s "$metrics" ] || metrics=/dev/null
  LC_ALL=C awk -F, -v label="$(printf "%-${widest}s" "$(label "$1")")" -v total="${totals[$1]}" '
    function clock(s) {
      s = int(s)
      if (s >= 3600) return sprintf("%d:%02d:%02d", s / 3600, s % 3600 / 60, s % 60)
      return sprintf("%d:%02d", s / 60, s % 60)
    }
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; columns = NF; next }
    NF == columns {
      n++
      done[n] = $column["sequences"]
      seconds[n] = $column["seconds"]
      above = "val/bits_above_optimum" in column
      goal = $column[above ? "val/bits_above_optimum" : "val/wrong_bits_per_sequence"]
    }
    END {
      if (n == 0) { printf "%s  starting\n", label; exit }
      from = n > 5 ? n - 5 : n > 1
      spent = seconds[n] - seconds[from]
      rate = spent > 0 ? (done[n] - done[from]) / spent : 0
      left = done[n] >= total ? "evaluating" : rate > 0 ? clock((total - done[n]) / rate) " left" : ""
      printf "%s  %3d %%  %" length(total) "d of %d  %4.0f/s  %s %6.3f  %s\n",
        label, 100 * done[n] / total, done[n], total, rate, above ? "above optimum" : "wrong bits", goal, left
    }' "$metrics"
}

# A value of a run's result.json.
result() {
  sed -n "s/^  \"$2\": \(.*[^,]\),*\$/\1/p" "${folders[$1]}/result.json" 2>/dev/null
}

# What a finished run came to on the test set, by the metric of its task.
reached() {
  local above
  above=$(result "$1" bits_above_optimum)
  if [ -n "$above" ]; then
    LC_ALL=C printf '%.3f bits above the optimum' "$above"
  else
    LC_ALL=C printf '%.3f wrong bits' "$(result "$1" wrong_bits_per_sequence)"
  fi
}

show() {
  local i lines width height
  [ "$SECONDS" -eq "$drawn_at" ] && return
  drawn_at=$SECONDS
  if [ -z "$live" ]; then
    for ((i = 0; i < jobs; i++)); do
      [ "${states[i]}" = running ] || continue
      [ $((SECONDS - logged_at[i])) -ge 60 ] || continue
      logged_at[i]=$SECONDS
      progress "$i" >&2
    done
    return
  fi
  width=$(tput cols 2>/dev/null || echo 80)
  height=$(tput lines 2>/dev/null || echo 24)
  lines=$(
    for ((i = 0; i < jobs; i++)); do
      [ "${states[i]}" = running ] && progress "$i"
    done | head -n $((height > 4 ? height - 3 : 1))
    printf '%s of %s done, %s failed, %s waiting' \
      "$(count finished resumed skipped)" "$jobs" "$(count failed)" "$(count start resume 'start over')"
  )
  lines=$(printf '%s\n' "$lines" | cut -c "1-$((width - 1))")
  # All of it in one command: Ctrl-C comes between commands, and must find the count right.
  height=$(printf '%s\n' "$lines" | wc -l)
  erase
  drawn=$height
  printf '%s\n' "$lines" >&2
}

# --- The runs.

said=$(mktemp -d) || exit 1 # what each run says
trap 'rm -rf "$said"' EXIT

stops=0
stop() {
  local i number=TERM
  stops=$((stops + 1))
  if [ "$stops" -eq 1 ]; then
    say "stopping: running runs end after their step; once more stops at once"
  else
    number=KILL
  fi
  for ((i = 0; i < jobs; i++)); do
    [ "${states[i]}" = running ] && kill -s "$number" "${pids[i]}" 2>/dev/null
  done
  if [ "$stops" -gt 1 ]; then
    say "stopped at once; the same command goes on from the last checkpoints"
    exit 130
  fi
}
trap stop INT TERM HUP

# The GPU with the fewest runs; none where there are none.
free_gpu() {
  local gpu i n least= best=
  for gpu in ${gpus[@]+"${gpus[@]}"}; do
    n=0
    for ((i = 0; i < jobs; i++)); do
      [ "${states[i]}" = running ] && [ "${on[i]}" = "$gpu" ] && n=$((n + 1))
    done
    if [ -z "$least" ] || [ "$n" -lt "$least" ]; then
      least=$n best=$gpu
    fi
  done
  printf %s "$best"
}

start() {
  [ "${states[$1]}" = resume ] && resumed[$1]=1
  on[$1]=$(free_gpu)
  local environment=(NTM_SWEEP=$$) # its own process number tells the run when this script is gone
  [ -z "${on[$1]}" ] || environment+=("CUDA_VISIBLE_DEVICES=${on[$1]}")
  env "${environment[@]}" "$python" "$root/run_train.py" "model=${models[$1]}" \
    ${overrides[@]+"${overrides[@]}"} "seed=${seeds[$1]}" \
    </dev/null >/dev/null 2>"$said/$1" &
  pids[$1]=$!
  [ -n "$live" ] || say "$(label "$1") begins (${states[$1]}): ${folders[$1]}"
  states[$1]=running
  logged_at[$1]=$((SECONDS - 50)) # its first line comes soon
}

ended() { # job, exit status
  local last
  last=$(tail -n 1 "$said/$1" | tr '\t' ' ')
  if [ "$2" -eq 0 ]; then
    states[$1]=finished
    [ -n "${resumed[$1]}" ] && states[$1]=resumed
    say "$(label "$1") finished: $(result "$1" sequences_to_solve | sed 's/^/solved at /; s/.*null/not solved/'), \
$(reached "$1")"
    return
  fi
  notes[$1]=${last:--}
  if [ "$2" -eq 130 ] || { [ "$2" -gt 128 ] && [ "$stops" -gt 0 ]; }; then
    states[$1]=interrupted
    case $2:$last in # the second signal, which is ours, may come when it has said all
      130:* | *:'interrupted ('*) ;;
      *) last="interrupted before it trained; the same command goes on" ;;
    esac
    say "$(label "$1") $last"
    return
  fi
  states[$1]=failed
  case $last in
    'held: '*) states[$1]=held && notes[$1]=${last#held: } ;;
    'failed: '*) notes[$1]=${last#failed: } ;;
  esac
  if [ "$2" -gt 128 ]; then
    notes[$1]="killed by signal $(($2 - 128)) ($(kill -l "$2" 2>/dev/null))"
    "$python" -m ntm.training.sweeps killed "${folders[$1]}" "${notes[$1]}"
  fi
  say "$(label "$1") ${states[$1]}: ${notes[$1]}"
}

for ((i = 0; i < jobs; i++)); do [ "${states[i]}" = skip ] && states[i]=skipped; done
over=
[ ${#gpus[@]} -eq 0 ] || over=" on GPU $(IFS=,; printf %s "${gpus[*]}")"
say "$jobs runs, $at_once at a time$over: $(count skipped) finished before, $(count resume) to go on, \
$(count start 'start over') to start"

next=0
running=0
while :; do
  for ((i = 0; i < next; i++)); do
    if [ "${states[i]}" = running ] && ! kill -0 "${pids[i]}" 2>/dev/null; then
      wait "${pids[i]}"
      ended "$i" $?
      running=$((running - 1))
    fi
  done
  while [ "$stops" -eq 0 ] && [ "$running" -lt "$at_once" ] && [ "$next" -lt "$jobs" ]; do
    if [ "${states[next]}" != skipped ]; then
      start "$next"
      running=$((running + 1))
    fi
    next=$((next + 1))
  done
  [ "$running" -eq 0 ] && break
  show
  sleep 0.2
done
erase

for ((i = 0; i < jobs; i++)); do
  case ${states[i]} in
    start | resume | 'start over') states[i]="not started" ;;
  esac
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "${models[i]}" "${seeds[i]}" "${folders[i]}" "${totals[i]}" \
    "${states[i]}" "${notes[i]}"
done | "$python" -m ntm.training.sweeps table

[ "$stops" -eq 0 ] || exit 130
[ "$(count failed interrupted)" -eq 0 ] || exit 1

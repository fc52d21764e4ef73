"""Completion in bash, which asks Hydra what a word can become.

Hydra's own way of installing it runs whatever script stands after ``python``, and no Python but the
one called so; this runs the four commands alone, by the Python and the path that were typed.
"""

BASH = r"""
export _HYDRA_OLD_COMP=$(complete -p python 2> /dev/null)
hydra_bash_completion() {
  local program=${COMP_WORDS[1]}
  case ${program##*/} in
    run_train.py | run_eval.py | run_compare.py | run_inside.py) ;;
    *) return ;;
  esac
  [ -f "$program" ] && [ "$COMP_CWORD" -gt 1 ] || return
  local typed="python ${program##*/}${COMP_LINE#*"$program"}"
  local choices=$(COMP_LINE=$typed "${COMP_WORDS[0]}" "$program" -sc query=bash 2> /dev/null)
  COMPREPLY=($(compgen -W "$choices" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F hydra_bash_completion python python3
"""
"""What ``eval "$(python run_train.py -sc install=bash)"`` runs."""

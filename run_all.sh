#!/usr/bin/env bash
# Sets up what is missing, then runs the notebooks of a preset, or the tests.
#
#   bash run_all.sh                     the quick preset
#   bash run_all.sh test [...]          the tests; arguments go to pytest
#   bash run_all.sh PRESET [...]        another preset; --help and --list say more
#
# An environment in which all requirements are met already (conda, Colab, your own venv) is used
# as it is. Otherwise .venv is made here and filled from requirements.lock.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "${BASH_SOURCE[0]}")"

space_gb=7 # what the installed packages take, and room for pip to unpack them

fail() {
  printf 'run_all.sh: %s\n' "$*" >&2
  exit 1
}

supported() { # supported PYTHON: is it there, and does requirements.lock cover its version?
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

satisfied() { # satisfied PYTHON EXTRA...: are the requirements met there?
  supported "$1" && "$1" -m dcopy.workflow.environment "${@:2}" >/dev/null 2>&1
}

find_python() {
  local name
  for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    if supported "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  fail "Python 3.10 to 3.13 is needed; python3 here is $(python3 --version 2>&1 || true)"
}

# .venv/requirements.lock tells the states of .venv apart: absent in one that this script did not
# make, empty while set-up is under way or after it was cut off, and equal to ours once all is done.
venv_finished() {
  cmp -s requirements.lock .venv/requirements.lock && satisfied .venv/bin/python notebooks dev
}

set_up_venv() {
  local python free
  python="$(find_python)"
  if [[ -e .venv && ! -e .venv/requirements.lock ]]; then
    fail "$("$PWD/.venv/bin/python" -m dcopy.workflow.environment notebooks dev 2>&1 | tail -n 1); " \
      "run_all.sh did not make this .venv and leaves it alone: complete it, move it away or activate another"
  fi
  rm -rf .venv
  free="$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')"
  ((free >= space_gb)) || fail "set-up needs $space_gb GB in $PWD, and $free GB are free there"

  printf 'Setting up .venv with %s: about 5 GB, once (details: .venv/setup.log)\n' "$("$python" --version)"
  mkdir .venv
  : >.venv/requirements.lock
  "$python" -m venv .venv >.venv/setup.log 2>&1 ||
    fail "$python -m venv did not work: $(tail -n 1 .venv/setup.log) (Debian, Ubuntu: apt install python3-venv)"
  # The lock is complete, so pip has nothing to resolve; and setuptools is in it, so nothing to build with.
  install --no-deps -r requirements.lock
  install --no-deps --no-build-isolation -e .
  cp requirements.lock .venv/requirements.lock
}

install() { # pip install, with a line for each larger download and everything else in the log
  .venv/bin/python -m pip install --no-input --disable-pip-version-check --no-compile --progress-bar off "$@" 2>&1 |
    tee -a .venv/setup.log | awk '/Downloading.*(MB|GB)/ { split($2, part, "-"); print "  " part[1], part[2], $3, $4; fflush() }' ||
    fail "pip could not install the packages: $(grep -m 1 ERROR .venv/setup.log || echo "see .venv/setup.log")" \
      "(is there a network? the next start begins the set-up anew)"
}

set_up_venv_once() { # two starts at the same moment: the second waits for the first
  (
    if command -v flock >/dev/null; then
      flock -n 9 || { echo "Another start is setting up .venv; waiting for it." && flock 9; }
    fi
    venv_finished || set_up_venv
  ) 9>>requirements.lock
}

choose_python() { # choose_python EXTRA...: sets `python` to an interpreter with all that is needed
  python=python3
  satisfied "$python" "$@" && return
  python="$PWD/.venv/bin/python"
  [[ ! -e .venv/requirements.lock ]] && satisfied "$python" "$@" && return
  venv_finished || set_up_venv_once
}

case "${1:-}" in
  -h | --help | --list)
    python="$(find_python)"
    exec "$python" -m dcopy.workflow.preset "$@"
    ;;
  test)
    choose_python notebooks dev
    command=(pytest --numprocesses 2 --dist loadfile "${@:2}")
    ;;
  *)
    python="$(find_python)"
    "$python" -m dcopy.workflow.preset --check "$@" # a wrong word is refused before 5 GB are fetched
    choose_python notebooks
    command=(dcopy.workflow.preset "$@")
    ;;
esac
echo "Python: $("$python" -c 'import sys; print(sys.executable)')"
# Each notebook is a new kernel. Where Python may not keep what it compiles, each would take 10 s for that.
unset PYTHONDONTWRITEBYTECODE
# An environment that is used as it is need not have dcopy installed.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m "${command[@]}"

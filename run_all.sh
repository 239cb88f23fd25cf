#!/usr/bin/env bash
# Sets up what is missing, then runs the notebooks of a preset, or the tests.
#
#   bash run_all.sh                     the quick preset
#   bash run_all.sh test [...]          the tests; arguments go to pytest
#   bash run_all.sh PRESET [...]        another preset; --help and --list say more
#   bash run_all.sh check [PRESET]      whether your run reproduces the committed one, number by number
#   bash run_all.sh adopt PRESET        make your run the committed one, results/reference/PRESET
#   bash run_all.sh site [PRESET]       tables, figures and pages anew, without training: of your run, or the committed one
#
# An environment in which all requirements are met already (conda, Colab, your own venv) is used
# as it is. Otherwise .venv is made here and filled from requirements.lock; without an NVIDIA GPU on
# Linux, torch is its smaller build for processors. DCOPY_TORCH_INDEX names another index of builds of
# torch, as for an older driver; with DCOPY_TORCH_INDEX=none, torch is that of requirements.lock.
set -euo pipefail
unset CDPATH
here="${BASH_SOURCE[0]%/*}" # no $(dirname), which would lose a line end in a folder's name
[[ "$here" != "${BASH_SOURCE[0]}" ]] || here=.
[[ "$here" == /* ]] || here="./$here"
cd "$here"

fail() {
  printf 'run_all.sh: %s\n' "$*" >&2
  exit 1
}

# Which Python, and what it has

keep_python_settings() { # keep_python_settings NAME...: and unset all other variables of Python
  local name
  for name in ${!PYTHON@}; do
    [[ " $* " == *" $name "* ]] || unset "$name"
  done
}

supported() { # supported PYTHON: is it there, and does requirements.lock cover its version?
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

satisfied() { # satisfied PYTHON EXTRA...: are the requirements met there? `reason` says why not
  if ! supported "$1"; then
    reason="$1 does not start, or is not Python 3.10 to 3.13"
    return 1
  fi
  reason="$("$1" -m dcopy.workflow.environment "${@:2}" 2>&1)" && return
  reason="${reason##*$'\n'}"
  return 1
}

find_python() { # sets `python` to one that can plan and make .venv
  for python in python3 python python3.13 python3.12 python3.11 python3.10; do
    ! supported "$python" || return 0
  done
  [[ -n "${PYTHONPATH:-}${PYTHONHOME:-}" ]] ||
    fail "Python 3.10 to 3.13 is needed; python3 here is $(python3 --version 2>&1 || true)"
  keep_python_settings
  find_python
}

choose_python() { # choose_python EXTRA...: sets `python` to an interpreter with all that is needed
  local foreign="${PYTHONPATH:+ PYTHONPATH}${PYTHONHOME:+ PYTHONHOME}${PYTHONUSERBASE:+ PYTHONUSERBASE}"
  python=python3
  satisfied "$python" "$@" && return
  if [[ -n "$foreign" ]]; then # as modules of clusters set them
    echo "Left out:$foreign. With it, $reason."
    keep_python_settings
    satisfied "$python" "$@" && return
  fi
  python="$PWD/.venv/bin/python"
  [[ ! -e .venv/requirements.lock ]] && satisfied "$python" "$@" && return
  venv_finished || in_own_group set_up_venv_once
  if gpu_here && compgen -G '.venv/lib/python3*/site-packages/torch-*+cpu.dist-info' >/dev/null; then
    echo "Here is an NVIDIA GPU, and .venv has torch for processors only: after rm -r .venv" \
      "the next start fetches the other."
  fi
}

# Set-up

# .venv/requirements.lock tells the states of .venv apart: absent in one that this script did not
# make, empty while set-up is under way or after it was cut off, and equal to ours once all is done.
venv_finished() { # `reason` says why not
  reason="its set-up was cut off"
  [[ -s .venv/requirements.lock ]] || return 1
  reason="requirements.lock has changed since"
  cmp -s requirements.lock .venv/requirements.lock && satisfied "$PWD/.venv/bin/python" notebooks dev
}

gpu_here() {
  [[ -e /dev/nvidia0 || -e /dev/nvidiactl || -e /dev/dxg ]] || command -v nvidia-smi >/dev/null
}

choose_torch() { # sets `index`, empty for torch as requirements.lock has it, and `size` and `space` in GB
  index="${DCOPY_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" size=5 space=7
  if [[ -z "${DCOPY_TORCH_INDEX:-}" ]]; then
    # On a cluster's login node there is none, but where the jobs run.
    [[ "$(uname -s)" == Linux ]] && ! gpu_here && ! command -v sbatch >/dev/null &&
      "$python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' "$index/torch/" 2>/dev/null ||
      index=none
  fi
  [[ "$index" != none ]] || index=
  [[ "$index" != */cpu ]] || size=2 space=4
}

set_up_venv() {
  local free link venv
  find_python
  keep_python_settings
  if [[ -e .venv && ! -e .venv/requirements.lock ]]; then
    satisfied "$PWD/.venv/bin/python" notebooks dev || true
    fail "$reason; run_all.sh did not make this .venv and leaves it alone: complete it, move it away or activate another"
  fi
  [[ ! -e .venv ]] || echo "Making .venv anew: $reason."
  rm -rf .venv
  choose_torch
  free="$(df -Pk . | awk 'NR == 2 { while ($(++i) !~ /%$/) free = $i; print int(free / 1048576) }')"
  [[ -z "$free" ]] || ((free >= space)) || fail "set-up needs $space GB in $PWD, and $free GB are free there"

  printf 'Setting up .venv with %s: about %s GB, once (details: .venv/setup.log)\n' "$("$python" --version)" "$size"
  mkdir .venv
  : >.venv/requirements.lock
  venv=.venv
  if ! "$python" -m venv .venv >.venv/setup.log 2>&1; then # which a colon, or bytes that are not UTF-8, prevent
    link="$(mktemp -d)"                                    # stays, for .venv/bin/jupyter and the like name it
    ln -s "$PWD" "$link/here"
    venv="$link/here/.venv"
    "$python" -m venv "$venv" >.venv/setup.log 2>&1 ||
      fail "$python -m venv did not work: $(tail -n 1 .venv/setup.log) (Debian, Ubuntu: apt install python3-venv)"
  fi
  only_pips_ways_to_the_network
  # The lock is complete, so pip has nothing to resolve; and setuptools is in it, so nothing to build with.
  if [[ -n "$index" ]] && install_torch; then
    grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' requirements.lock >.venv/others.lock
    install --no-deps -r .venv/others.lock || pip_failed
  else
    [[ -z "$index" ]] || echo "From $index it does not come: as requirements.lock has it, about 5 GB."
    install --no-deps -r requirements.lock || pip_failed
  fi
  # So that dcopy is found from notebooks/, too; pip cannot say where it lies if the name is too odd.
  install --no-deps --no-build-isolation -e . || ln -s ../../../../dcopy .venv/lib/python3*/site-packages/ || pip_failed
  rm -rf .venv/tmp
  satisfied "$PWD/.venv/bin/python" notebooks dev || fail "the set-up ended, and yet $reason (details: .venv/setup.log)"
  cp requirements.lock .venv/requirements.lock
}

install_torch() { # from $index, in the lock's versions, with what that build needs
  local lines
  lines="$(grep -E '^(torch|torchvision)==' requirements.lock)"
  # shellcheck disable=SC2086 # two words
  install --index-url "$index" ${lines//$'\n'/ }
}

install() { # pip install, with a line for each larger download and everything else in the log
  mkdir -p .venv/tmp # a folder for temporary files may be too small for torch
  TMPDIR="$PWD/.venv/tmp" "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --no-compile \
    --progress-bar off "$@" 2>&1 | tee -a .venv/setup.log |
    awk '/Downloading.*(MB|GB)/ { split($2, part, "-"); print "  " part[1], part[2], $3, $4; fflush() }'
}

pip_failed() {
  fail "pip could not install the packages: $(grep ERROR .venv/setup.log | tail -n 1 || echo "see .venv/setup.log")" \
    "(is there a network? the next start begins the set-up anew)"
}

only_pips_ways_to_the_network() { # PIP_USER, PIP_TARGET and the like would put packages elsewhere
  local name settings
  settings="$(.venv/bin/python -m dcopy.workflow.environment --pip)" || settings=
  for name in ${!PIP_@}; do unset "$name"; done
  eval "$settings"
  export PIP_CONFIG_FILE=/dev/null
}

set_up_venv_once() { # two starts at the same moment: the second waits for the first
  [[ -w . && -w requirements.lock ]] || fail "$python cannot be used ($reason), and $PWD cannot be written:" \
    "copy it, or activate an environment with what pyproject.toml asks for"
  (
    if command -v flock >/dev/null; then
      flock -n 9 || { echo "Another start is setting up .venv; waiting for it." && flock 9; } ||
        echo "$PWD cannot be locked; start nothing else here during set-up."
    fi
    venv_finished || set_up_venv
  ) 9>>requirements.lock
}

# A signal stops the set-up with all its processes; bash alone would wait for pip to end.
in_own_group() {
  set -m
  "$@" </dev/null &
  group=$!
  set +m
  wait "$group" || exit
  group=
}

stopped() { # stopped NAME: of a signal
  [[ -z "$group" ]] || kill -- "-$group" 2>/dev/null || true
  printf 'run_all.sh: stopped by SIG%s. The same command begins the set-up anew.\n' "$1" >&2
  exit "$((128 + $(kill -l "$1")))"
}

group=
for name in INT TERM HUP USR1 USR2 XCPU; do
  # shellcheck disable=SC2064 # the name of now
  trap "stopped $name" "$name"
done
# Where Python may not keep what it compiles, each notebook's kernel would take 10 s for that. Others
# change what -m finds, or what code does.
keep_python_settings PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONNOUSERSITE PYTHONPYCACHEPREFIX PYTHONUTF8 PYTHONIOENCODING

case "${1:-}" in
  -h | --help | --list)
    find_python
    exec "$python" -m dcopy.workflow.preset "$@"
    ;;
  test)
    shift
    choose_python notebooks dev
    command=(pytest --numprocesses 2 --dist loadfile "$@")
    ;;
  check | adopt | site)
    choose_python notebooks
    command=(dcopy.report "$@")
    ;;
  *)
    find_python
    "$python" -m dcopy.workflow.preset --check "$@" # a wrong word is refused before 5 GB are fetched
    extras=(notebooks)
    [[ " $* " != *" --slurm "* ]] || extras+=(slurm)
    choose_python "${extras[@]}"
    command=(dcopy.workflow.preset "$@")
    ;;
esac
echo "Python: $("$python" -c 'import sys; print(ascii(sys.executable)[1:-1])')"
exec "$python" -m "${command[@]}"

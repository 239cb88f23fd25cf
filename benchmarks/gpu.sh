#!/usr/bin/env bash
# What only a GPU can show, in pieces of under nine minutes, for a machine that is lent by the call.
#
#   bash benchmarks/gpu.sh [SECONDS]    exits with 75 while there is more to do, with 0 when all is done
#
# It needs the packages of `pip install -e .` and no network. CIFAR-10 lies in DCOPY_DATA (default: data).
# Where it cannot be fetched, it may come in parts, over as many calls as it takes:
#
#   mkdir -p data/parts && tar -C data -c cifar10 | split -b 60M - data/parts/cifar10.tar.
#   (cd data/parts && sha256sum cifar10.tar.* >SHA256SUMS)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DCOPY_DATA="${DCOPY_DATA:-data}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

parts="$DCOPY_DATA/parts"
if [[ -e $parts/SHA256SUMS && ! -e $DCOPY_DATA/cifar10 ]]; then
  if ! (cd "$parts" && sha256sum --quiet --check SHA256SUMS); then
    echo "gpu.sh: parts of the data are missing or damaged; bring them and call again" >&2
    exit 75
  fi
  rm -rf "$parts/unpacked" && mkdir "$parts/unpacked"
  (cd "$parts" && awk '{ print $2 }' SHA256SUMS | xargs cat) | tar -C "$parts/unpacked" -x
  mv "$parts/unpacked/cifar10" "$DCOPY_DATA/cifar10" # at once, so that a cut leaves no half of it
fi
exec "${PYTHON:-python3}" benchmarks/gpu_runs.py --seconds "${1:-500}"

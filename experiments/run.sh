#!/usr/bin/env bash
# Run the queue with the Python of a GPU image (PyTorch, NumPy) and a folder of wheels; needs no network.
#
#   experiments/run.sh WHEELS [options of `srquant experiments run`]
#
# PYTHON is the interpreter that has PyTorch (python3).
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
wheels=${1:?usage: experiments/run.sh WHEELS [options of srquant experiments run]}
shift

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
PYTHONPATH="$site:$home/src${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" -m srquant experiments run --folder "$home/experiments" "$@"

#!/usr/bin/env bash
# Fetch what srquant needs besides PyTorch and NumPy as wheels, for a machine without network.
#
#   experiments/pack.sh [FOLDER]        default: build/wheels
#
# The versions are those of this environment. PYTHON is the interpreter that has srquant (.venv/bin/python); TARGET
# the other machine's Python version (3.12); it is taken to run Linux on x86-64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-build/wheels}
python=${PYTHON:-.venv/bin/python}
target=${TARGET:-3.12}
limit=$((16 * 1024 * 1024))

needed=$("$python" - <<'PYTHON'
"""Print NAME==VERSION of everything that srquant needs, PyTorch and NumPy with all that only they need left out."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

THERE = {"torch", "numpy"}
found: dict[str, str] = {}


def visit(requirements: list[str], extras: set[str]) -> None:
    for text in requirements:
        need = Requirement(text)
        wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""})
        key = re.sub(r"[-_.]+", "-", need.name).lower()
        if not wanted or key in THERE or key in found:
            continue
        try:
            package = distribution(key)
        except PackageNotFoundError:  # needed on another system only
            continue
        found[key] = package.version
        visit(package.requires or [], set(need.extras))


with open("pyproject.toml", "rb") as file:
    visit(tomllib.load(file)["project"]["dependencies"], set())
print(*(f"{name}=={version}" for name, version in sorted(found.items())))
PYTHON
)

mkdir -p "$folder"
rm -f "$folder"/*.whl
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1 manylinux_2_5 manylinux_2_12; do
    platforms+=(--platform "${tag}_x86_64")
done
# shellcheck disable=SC2086  # one word per package
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --implementation cp --python-version "$target" "${platforms[@]}" --dest "$folder" $needed

for wheel in "$folder"/*.whl; do
    size=$(stat -c %s "$wheel")
    [ "$size" -le "$limit" ] || { echo "$wheel has $size bytes, more than $limit" >&2; exit 1; }
done
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sk "$folder" | cut -f1) kB, in $folder"

#!/usr/bin/env bash
# Everything that checks the code, environment included: ruff, mypy, doctests and tests.
# usage: bash scripts/test.sh [pytest options]
#   XTINY_DATA names a folder with the real data sets; tests of theirs are skipped without it
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=test
. scripts/environment.sh

ruff check .
ruff format --check .
mypy monai_xtiny
lint-imports --no-logo
# One thread a worker: two of them share the cores.
OMP_NUM_THREADS=1 python -m pytest -n 2 "$@"

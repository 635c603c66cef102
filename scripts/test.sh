#!/usr/bin/env bash
# What checks the code, environment included: ruff, mypy, the book, doctests and tests, in three tiers.
# usage: bash scripts/test.sh [--fast | --all] [pytest options]
#   --fast  mathematics, parsing and formats, in a minute and a half, without the book: after every edit
#   without, searches, exports and brief trainings too: before a commit
#   --all   everything, the runs from end to end too: before a merge, as .ci/run does
#   XTINY_DATA names a folder with the real data sets; tests of theirs are skipped without it
set -euo pipefail
cd "$(dirname "$0")/.."
TIER=(-m "not slow")
case "${1:-}" in
--fast)
    TIER=(-m "not slow and not search")
    shift
    ;;
--all)
    TIER=()
    shift
    ;;
esac
EXTRAS=test,docs
. scripts/environment.sh

ruff check .
ruff format --check .
mypy monai_xtiny
lint-imports --no-logo
if [ "${TIER[*]-}" != "-m not slow and not search" ]; then
    bash scripts/book.sh
fi
# One thread per worker: two of them share the cores. An idle one takes over tests of the other.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal ${TIER[@]+"${TIER[@]}"} "$@"

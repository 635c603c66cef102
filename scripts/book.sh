#!/usr/bin/env bash
# Builds the book of docs/ as HTML: build/book/index.html.
# usage: bash scripts/book.sh
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=test,docs
. scripts/environment.sh

# Each page anew, as a page that is kept repeats none of its warnings; each warning is an error.
sphinx-build -q -E -W --keep-going docs build/book
# It is read without a network too.
if grep -rlE '<(script|link|img)[^>]*(src|href)="(https?:)?//' --include='*.html' build/book; then
    echo "error: these pages ask for something from elsewhere" >&2
    exit 1
fi
echo "book: build/book/index.html"

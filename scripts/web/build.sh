#!/usr/bin/env bash
# Builds the parts of the page of `python -m monai_xtiny web` into monai_xtiny/web_assets, of what
# package-lock.json names; a wheel that is made afterwards carries them.
# usage: bash scripts/web/build.sh
set -euo pipefail
cd "$(dirname "$0")"
target=../../monai_xtiny/web_assets

if ! node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' 2>/dev/null; then
    echo "error: no Node 18 or later found: install nodejs and npm, and run this again" >&2
    exit 2
fi

# Built again only when a source or a version changes.
wanted=$(cat package-lock.json build.mjs src/* licenses/* | cksum)
if [ "$(cat node_modules/built 2>/dev/null)" = "$wanted" ] && [ -f "$target/runtime.wasm" ]; then
    exit 0
fi
lock=$(cksum <package-lock.json)
if [ "$(cat node_modules/installed 2>/dev/null)" != "$lock" ]; then
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    echo "$lock" >node_modules/installed
fi
rm -rf "$target.part"
node build.mjs "$target.part"
rm -rf "$target"
mv "$target.part" "$target"
echo "$wanted" >node_modules/built

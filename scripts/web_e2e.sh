#!/usr/bin/env bash
# Pages of the shipped bundles in headless Chromium: labels as Python's, no request to elsewhere;
# likewise of a bundle of slices. Then their reports, wide, narrow and in print.
# usage: bash scripts/web_e2e.sh [DATA] [OUTPUT]
#   DATA holds Dataset004_Hippocampus and Dataset076_DSB2018Fluo in nnU-Net's layout (default:
#   $XTINY_DATA); screenshots are left in OUTPUT/screens
#   Node and Chromium are installed with apt-get where they are missing and root runs this
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-${XTINY_DATA:-}} output=${2:-${TMPDIR:-/tmp}/monai_xtiny_web.$$}
for set in Dataset004_Hippocampus Dataset076_DSB2018Fluo; do
    if [ -z "$data" ] || [ ! -d "$data/$set" ]; then
        echo "skipped: no $set; give the folder of real data as argument or in XTINY_DATA"
        exit 0
    fi
done
started=$SECONDS
EXTRAS=test
. scripts/environment.sh

missing=()
command -v node >/dev/null && command -v npm >/dev/null || missing+=(nodejs npm)
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    # Another apt-get may hold the lock.
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
        ! apt-get -o DPkg::Lock::Timeout=600 -qq update ||
        ! DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq \
            install -y --no-install-recommends "${missing[@]}" >/dev/null; then
        echo "skipped: ${missing[*]} not found, and cannot be installed: install them and run this again"
        exit 0
    fi
fi

if [ ! -d scripts/web/node_modules ] && ! npm view onnxruntime-web version >/dev/null 2>&1; then
    echo "skipped: npm's packages cannot be had here"
    exit 0
fi
bash scripts/web/build.sh
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
# The JavaScript of docs/howto/deployment.md, which needs what the build has installed.
XTINY_DATA=$data python -m pytest -q tests/test_docs.py -k programs_label_an_image
rm -rf "$output"
mkdir -p "$output"
if ! python scripts/web_e2e.py "$data" "$output" >"$output/prepare.log" 2>&1; then
    tail -n 20 "$output/prepare.log" >&2
    exit 1
fi
node scripts/web/e2e.mjs "$output"
CHROMIUM=$(command -v chromium || command -v google-chrome) \
    NODE_PATH=scripts/web/node_modules node scripts/report_check.mjs bundle/*/docs/report.html \
    --screenshots "$output/screens"
echo "screenshots: $output/screens; done in $((SECONDS - started)) s"

#!/usr/bin/env bash
# The runs on real data of docs/evidence.md: search, one epoch of training, inference, evaluation, for 3D MRI, gray and
# RGB microscopy.
# usage: bash scripts/real_data.sh [DATA] [OUTPUT]
#   DATA holds Dataset004_Hippocampus, Dataset076_DSB2018Fluo and Dataset077_DSB2018Stain in nnU-Net's
#   layout (default: $XTINY_DATA); sets that are not there are skipped
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-${XTINY_DATA:-}} output=${2:-${TMPDIR:-/tmp}/monai_xtiny_real_data.$$}
if [ -z "$data" ] || [ ! -d "$data" ]; then
    echo "skipped: no folder of real data; give it as argument or in XTINY_DATA"
    exit 0
fi
EXTRAS=demo
. scripts/environment.sh
export PYTHONWARNINGS=ignore
data=$(cd "$data" && pwd)
mkdir -p "$output"
output=$(cd "$output" && pwd)

run_bundle() { # CONFIG BUNDLE OPTIONS...
    local config=$1 bundle=$2
    shift 2
    if ! python -m monai.bundle run --config_file "$bundle/configs/$config.json" \
        --bundle_root "$bundle" "$@" >"$output/$config.log" 2>&1; then
        tail -n 20 "$output/$config.log" >&2
        exit 1
    fi
}

one_set() { # NAME BUNDLE SEARCH_OPTIONS...
    local set=$1 bundle=$output/$2 started=$SECONDS
    shift 2
    if [ ! -d "$data/$set" ]; then
        echo "skipped: no $set"
        return
    fi
    echo "== $set"
    python -m monai_xtiny search --images "$data/$set" --bundle "$bundle" --method paper --overwrite "$@"
    # A tenth of the cases is enough to show that every step works.
    local cases=$output/$set
    rm -rf "$cases" "$bundle/labels"
    mkdir -p "$cases/imagesTr" "$cases/labelsTr" "$cases/some"
    find "$data/$set/labelsTr" -type f | sort | awk 'NR % 10 == 1' | while read -r label; do
        local case
        case=$(basename "$label")
        case=${case%%.*}
        ln -s "$label" "$cases/labelsTr/"
        ln -s "$data/$set/imagesTr/${case}"_0*.* "$cases/imagesTr/"
    done
    find "$cases/imagesTr" -name '*_0000.*' | sort | head -n 4 |
        while read -r file; do ln -s "$file" "$cases/some/"; done
    run_bundle train "$bundle" --dataset_dir "$cases" --epochs 1 --val_interval 1
    grep -o 'val_mean_dice: [0-9.]*' "$output/train.log" | tail -n 1
    run_bundle inference "$bundle" --dataset_dir "$cases/some" --output_dir "$bundle/labels"
    ls "$bundle/labels"
    python -m monai_xtiny evaluate --bundle "$bundle" --data "$cases"
    echo "overlay: $bundle/docs/overlay.png"
    echo "$set: $((SECONDS - started)) s"
}

one_set Dataset076_DSB2018Fluo nuclei_fluorescence_segmentation
one_set Dataset077_DSB2018Stain nuclei_stain_segmentation
one_set Dataset004_Hippocampus hippocampus_slices_segmentation --spatial_dims 2
one_set Dataset004_Hippocampus hippocampus_mri_segmentation

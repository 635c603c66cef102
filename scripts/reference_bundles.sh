#!/usr/bin/env bash
# Remakes the bundles in bundle/: search, train by their own train.json, evaluate, state the license.
# usage: bash scripts/reference_bundles.sh [DATA] [OUTPUT]
#   DATA holds Dataset004_Hippocampus and Dataset076_DSB2018Fluo in nnU-Net's layout (default:
#   $XTINY_DATA); about 1.5 hours on 2 cores. A stopped run goes on where it was; a bundle that has
#   been evaluated is left alone: remove it to make it anew
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-${XTINY_DATA:-}} output=${2:-bundle}
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

reference() { # NAME SET EPOCHS LICENSE SEARCH_OPTIONS...
    local bundle=$output/$1 images=$data/$2 epochs=$3 license=$4
    shift 4
    if [ -f "$bundle/docs/evaluation.json" ]; then
        echo "done before: $bundle"
        return
    fi
    if [ ! -f "$bundle/docs/search.json" ]; then
        python -m monai_xtiny search --images "$images" --bundle "$bundle" --method paper "$@"
    fi
    printf '%s\n' "$license" >"$bundle/docs/data_license.txt"
    python -m monai.bundle run --config_file "$bundle/configs/train.json" --bundle_root "$bundle" \
        --dataset_dir "$images" --epochs "$epochs"
    python -m monai_xtiny evaluate --bundle "$bundle" --data "$images"
    rm -r "$bundle/eval"
}

reference hippocampus_mri_xtiny_segmentation Dataset004_Hippocampus 30 \
    "The network was trained on Task04_Hippocampus of the Medical Segmentation Decathlon
(http://medicaldecathlon.com, Vanderbilt University Medical Center; Simpson et al.,
arXiv:1902.09063), licensed under CC BY-SA 4.0
(https://creativecommons.org/licenses/by-sa/4.0/). The weights in models/ and the image of cases
in docs/overlay.png are shared under the same license. The other files are under the license in
LICENSE." --num_seeds 10
reference nuclei_fluorescence_xtiny_segmentation Dataset076_DSB2018Fluo 60 \
    "The network was trained on the fluorescence images of the 2018 Data Science Bowl, image set
BBBC038v1 of the Broad Bioimage Benchmark Collection (https://bbbc.broadinstitute.org/BBBC038;
Caicedo et al., Nature Methods 16, 1247-1253, 2019), which are in the public domain (CC0 1.0,
https://creativecommons.org/publicdomain/zero/1.0/). The weights in models/ and the image of
cases in docs/overlay.png are shared under the same terms. The other files are under the license in
LICENSE."

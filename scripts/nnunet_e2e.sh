#!/usr/bin/env bash
# Into nnU-Net and back: real data planned, trained and predicted by it, widths chosen by us.
# usage: XTINY_DATA=DIR bash scripts/nnunet_e2e.sh [--versions "2.8.1 2.7.0"] [--output DIR]
#   each version of nnU-Net has an environment of its own in .venv-nnunet-VERSION, made once
set -euo pipefail
cd "$(dirname "$0")/.."

output=${TMPDIR:-/tmp}/monai_xtiny_nnunet.$$ versions="2.8.1 2.7.0"
while [ $# -gt 0 ]; do
    case $1 in
        --output | --versions)
            [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            declare "${1#--}=$2"
            shift 2
            ;;
        *)
            sed -n '2,4s/^# //p' "$0" >&2
            exit 2
            ;;
    esac
done
if [ -z "${XTINY_DATA:-}" ]; then
    echo "skipped: XTINY_DATA does not name the folder of the real data sets (scripts/real_data.sh)"
    exit 0
fi

started=$SECONDS
EXTRAS=nnunet
. scripts/environment.sh
mkdir -p "$output"
output=$(cd "$output" && pwd)
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONWARNINGS=ignore nnUNet_def_n_proc=1

make_environment() { # VERSION
    local folder=$root/.venv-nnunet-$1 wanted
    wanted="$1 $(grep '^torch==' "$root/constraints.txt")"
    nnunet=$folder/bin
    [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ] || return 0
    echo "making $folder"
    python -m venv --clear "$folder"
    grep '^torch==' "$root/constraints.txt" >"$folder/constraints.txt"
    # Of the extra index: torch without CUDA. The constraint keeps nnU-Net from taking another.
    "$nnunet/python" -m pip install --quiet --disable-pip-version-check \
        ${XTINY_TORCH_INDEX:+--extra-index-url "$XTINY_TORCH_INDEX"} \
        -c "$folder/constraints.txt" torch "nnunetv2==$1"
    echo "$wanted" >"$folder/installed"
}

there() { # ID CONFIGURATION ITERATIONS: configures, trains (nnUNetv2_train, shortened) and predicts
    local id=$1 configuration=$2 iterations=$3 name
    echo "== data set $id, $configuration: configure"
    python -m monai_xtiny nnunet configure --dataset_id "$id" --configuration "$configuration" \
        --num_images 2 | tee "$folder/configure_$id.log" | grep -E '^(selected|configuration)'
    name=$(sed -n 's/^configuration \([^ ]*\) .*/\1/p' "$folder/configure_$id.log")
    echo "== data set $id, $name: train $iterations iterations, predict"
    nnUNet_n_proc_DA=0 nnUNet_compile=f "$nnunet/python" scripts/nnunet/train.py \
        "$id" "$name" 0 "$iterations" >"$folder/train_$id.log" 2>&1 ||
        { tail -n 20 "$folder/train_$id.log" >&2; exit 1; }
    "$nnunet/nnUNetv2_predict" -d "$id" -c "$name" -f 0 -device cpu -npp 1 -nps 1 \
        -i "$(echo "$nnUNet_raw"/Dataset*"$id"_*/imagesTs)" -o "$folder/predicted_$id" \
        >"$folder/predict_$id.log" 2>&1 ||
        { tail -n 20 "$folder/predict_$id.log" >&2; exit 1; }
    python scripts/nnunet/compare_labels.py "$folder/predicted_$id"
}

back() { # ID: the checkpoint as a bundle, and the bundle as a model folder
    local id=$1 name bundle images
    name=$(sed -n 's/^configuration \([^ ]*\) .*/\1/p' "$folder/configure_$id.log")
    bundle=$folder/imported_$id/data${id}_segmentation
    images=$(echo "$nnUNet_raw"/Dataset*"$id"_*/imagesTs)
    echo "== data set $id, $name: import, predict with MONAI"
    python -m monai_xtiny nnunet import --bundle "$bundle" \
        "$(echo "$nnUNet_results"/Dataset*"$id"_*/nnUNetTrainer__nnUNetPlans__"$name"/fold_0)/checkpoint_final.pth"
    python -m monai.bundle run --config_file "$bundle/configs/inference.json" \
        --bundle_root "$bundle" --dataset_dir "$images" --output_dir "$folder/monai_$id" \
        >"$folder/monai_$id.log" 2>&1 || { tail -n 20 "$folder/monai_$id.log" >&2; exit 1; }
    python scripts/nnunet/compare_labels.py "$folder/predicted_$id" "$folder/monai_$id"
    echo "== data set $id: export, predict with nnU-Net"
    python -m monai_xtiny nnunet export "$bundle" --output "$folder/exported_$id"
    "$nnunet/nnUNetv2_predict_from_modelfolder" -i "$images" -o "$folder/again_$id" \
        -m "$folder/exported_$id" -f 0 -device cpu -npp 1 -nps 1 >"$folder/again_$id.log" 2>&1 ||
        { tail -n 20 "$folder/again_$id.log" >&2; exit 1; }
    python scripts/nnunet/compare_labels.py "$folder/predicted_$id" "$folder/again_$id"
}

own() { # a bundle of the package's own, trained in MONAI: as a model folder of data set 4
    local bundle=$root/bundle/hippocampus_mri_xtiny_segmentation images name=3d_fullres_xtiny8
    images=$(echo "$nnUNet_raw"/Dataset004_*/imagesTs)
    echo "== the bundle hippocampus_mri_xtiny_segmentation: export, predict with both"
    python -m monai_xtiny nnunet export "$bundle" \
        --output "$(echo "$nnUNet_results"/Dataset004_*)/nnUNetTrainer__nnUNetPlans__$name"
    "$nnunet/nnUNetv2_predict" -d 4 -c "$name" -f 0 -device cpu -npp 1 -nps 1 \
        -i "$images" -o "$folder/predicted_own" >"$folder/predict_own.log" 2>&1 ||
        { tail -n 20 "$folder/predict_own.log" >&2; exit 1; }
    python -m monai.bundle run --config_file "$bundle/configs/inference.json" \
        --bundle_root "$bundle" --dataset_dir "$images" --output_dir "$folder/monai_own" \
        >"$folder/monai_own.log" 2>&1 || { tail -n 20 "$folder/monai_own.log" >&2; exit 1; }
    # One window, no resampling: 1 of 187,335 voxels may differ, where two logits are 5e-7 apart.
    python scripts/nnunet/compare_labels.py "$folder/predicted_own" "$folder/monai_own" 0.00001
}

for version in $versions; do
    begun=$SECONDS
    make_environment "$version"
    folder=$output/$version
    export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
    rm -rf "$folder"
    mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
    echo "== nnU-Net $version: plan and preprocess"
    python scripts/nnunet/prepare.py
    "$nnunet/nnUNetv2_plan_and_preprocess" -d 4 76 -c 2d 3d_fullres -npfp 1 -np 1 1 \
        >"$folder/preprocess.log" 2>&1 || { tail -n 20 "$folder/preprocess.log" >&2; exit 1; }
    there 76 2d 25
    there 4 3d_fullres 50
    back 76
    back 4
    own
    echo "nnU-Net $version: $((SECONDS - begun)) s"
done
echo "done in $((SECONDS - started)) s"

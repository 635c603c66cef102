#!/usr/bin/env bash
# The main job from nothing: search and race, train for a few epochs, look at held-out cases, infer.
# What is done is skipped when it is run again.
# usage: bash scripts/quickstart.sh [--images DIR] [--output DIR] [--epochs N] [--label_names A,B]
#   without --images: axial slices of the MNI152 template with its gray and white matter
set -euo pipefail
cd "$(dirname "$0")/.."

images= output=quickstart epochs=20 label_names=
while [ $# -gt 0 ]; do
    case $1 in
        --images | --output | --epochs | --label_names)
            [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            declare "${1#--}=$2"
            shift 2
            ;;
        *)
            sed -n '2,5s/^# //p' "$0" >&2
            exit 2
            ;;
    esac
done

if [ -n "$images" ] && [ ! -e "$images" ] && ! compgen -G "$images" >/dev/null; then
    echo "error: no such file or folder: '$images': check --images" >&2
    exit 2
fi

started=$SECONDS
EXTRAS=demo,deploy
. scripts/environment.sh
export PYTHONWARNINGS=ignore

mkdir -p "$output"
if [ -z "$images" ]; then
    images=$output/Dataset001_MNI152
    [ -d "$images" ] || python scripts/make_demo_data.py --output "$images"
fi
bundle=$output/quickstart_segmentation
predictions=$output/predictions
rm -rf "$predictions"

python -m monai_xtiny auto --data "$images" --bundle "$bundle" --epochs "$epochs" \
    --max_minutes 5 ${label_names:+--label_names "$label_names"}
if [ ! -d "$images/labelsTr" ]; then
    echo "curve: $bundle/docs/sensitivity.png"
    exit 0
fi

to_label=imagesTs
[ -d "$images/imagesTs" ] || to_label=imagesTr
images=$(cd "$images" && pwd)
bundle=$(cd "$bundle" && pwd)
run() {
    echo "== $1"
    shift
    if ! python -m monai.bundle run "$@" --bundle_root "$bundle" >"$output/last.log" 2>&1; then
        tail -n 20 "$output/last.log" >&2
        exit 1
    fi
}
run "infer on $to_label" --config_file "$bundle/configs/inference.json" \
    --dataset_dir "$images/$to_label" --output_dir "$predictions"

echo "labels of $to_label: $predictions"
echo "curve: $bundle/docs/sensitivity.png"
echo "overlay: $bundle/docs/overlay.png"
echo "done in $((SECONDS - started)) s"

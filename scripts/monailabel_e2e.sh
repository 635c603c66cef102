#!/usr/bin/env bash
# Emitted bundles in a real MONAI Label server: 3D, 2D slice-wise on 3D studies, and PNG images.
# usage: bash scripts/monailabel_e2e.sh [--output DIR]
#   the server has its own environment in .venv-label, made once; its logs are left in DIR
set -euo pipefail
cd "$(dirname "$0")/.."

output=${TMPDIR:-/tmp}/monai_xtiny_label.$$
while [ $# -gt 0 ]; do
    case $1 in
        --output)
            [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            output=$2
            shift 2
            ;;
        *)
            sed -n '2,4s/^# //p' "$0" >&2
            exit 2
            ;;
    esac
done

started=$SECONDS
EXTRAS=demo
. scripts/environment.sh
server_venv=$root/.venv-label
recipe=$root/scripts/monailabel

server_python=$server_venv/bin/python

# MONAI Label's own dependencies exclude these versions of torch and numpy, so it is not resolved.
wanted=$(cat "$recipe"/*.txt "$recipe"/*.py | cksum)
if [ "$(cat "$server_venv/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "making $server_venv"
    python -m venv --clear "$server_venv"
    "$server_python" -m pip install --quiet --disable-pip-version-check \
        -r "$recipe/requirements.txt"
    "$server_python" -m pip install --quiet --disable-pip-version-check \
        --no-deps -r "$recipe/no_deps.txt"
    "$server_python" "$recipe/torchvision_shim.py"
    echo "$wanted" >"$server_venv/installed"
fi

# Same bits on every run and in both environments.
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONWARNINGS=ignore
mkdir -p "$output"
output=$(cd "$output" && pwd)
server_pid= client_pid=

stop_server() {
    [ -z "$client_pid" ] || kill -TERM "$client_pid" 2>/dev/null || true
    [ -n "$server_pid" ] || return 0
    local pid=$server_pid
    server_pid=
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    # A server leads a process group of its own, so that no training outlives it.
    if kill -KILL -- "-$pid" 2>/dev/null; then
        echo "the server $pid or a child of it had to be killed" >&2
    fi
    wait "$pid" 2>/dev/null || true
}
trap stop_server EXIT
trap 'exit 130' INT TERM

check_server() { # STUDIES MODELS
    local studies=$output/studies/$1 models=$2 log=$output/server_$1.log port
    port=$(python scripts/monailabel_e2e.py port)
    echo "== $models"
    set -m
    (
        # Not where the user is: the server reads a file .env from its folder.
        cd "$output/app"
        PATH=$server_venv/bin:$PATH MONAI_LABEL_AUTO_UPDATE_SCORING=false \
            exec "$server_python" -m monailabel.main start_server \
            --app "$output/app/monaibundle" --studies "$studies" --host 127.0.0.1 --port "$port" \
            --conf models "$models" --conf zoo_source local --conf sam2 false \
            --conf epistemic_model "$models"
    ) >"$log" 2>&1 &
    server_pid=$!
    set +m
    # In the background, as a trap must not wait for its end.
    python scripts/monailabel_e2e.py check --url "http://127.0.0.1:$port" --pid "$server_pid" \
        --output "$output" --studies "$studies" --models "$models" &
    client_pid=$!
    if ! wait "$client_pid"; then
        echo "error: $models failed in MONAI Label; the end of $log:" >&2
        tail -n 60 "$log" >&2
        exit 1
    fi
    client_pid=
    stop_server
}

rm -rf "$output/app" "$output/studies" "$output/truth" "$output/reference" "$output/answers"
mkdir -p "$output/app"
"$server_python" -m monailabel.main apps --download --name monaibundle \
    --output "$output/app" >"$output/app.log" 2>&1 || { cat "$output/app.log" >&2; exit 1; }
# The bundle app has no strategy that reads scores; docs/label_next.md adds it in the same way.
sed -i -e 's/^from monailabel.tasks.activelearning.first import First$/from monailabel.tasks.activelearning.epistemic import Epistemic\n&/' \
    -e 's/^ *"first": First(),$/&\n            "epistemic": Epistemic(),/' "$output/app/monaibundle/main.py"
python scripts/monailabel_e2e.py data --output "$output"

search() { # NAME STUDIES LABEL_NAMES OPTIONS...
    local name=$1 studies=$2 label_names=$3
    shift 3
    echo "== search: ${name}_segmentation"
    python -m monai_xtiny search --images "$output/studies/$studies" --label_names "$label_names" \
        --bundle "$output/app/monaibundle/model/${name}_segmentation" --num_images 2 "$@" |
        grep '^selected'
}
search volumes nifti "background,Gray matter,White matter"
search slices nifti "background,Gray matter,White matter" --spatial_dims 2
search gray gray "background,Nucleus"
search rgb rgb "background,Nucleus"

check_server nifti volumes_segmentation,slices_segmentation
check_server gray gray_segmentation
check_server rgb rgb_segmentation
echo "done in $((SECONDS - started)) s"

#!/usr/bin/env bash
# What a release needs, by hand before it: builds wheel and source distribution, looks into both,
# installs the wheel in a clean environment of each Python and runs the fast tests against it.
# usage: bash scripts/release_check.sh [--output DIR] [--reuse] [PYTHON...]
#   PYTHON   interpreters (default: python3.10 python3.12)
#   DIR      gets wheel, source distribution and environments (default: build/release)
#   --reuse  environments that are there keep their packages, of which PyTorch with CUDA has 7 GB
#   XTINY_TORCH_INDEX may name pip's index of PyTorch without CUDA
#   Needs Node for the parts of the page of `web`, unless they are built.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD output=$PWD/build/release reuse=
while [ $# -gt 0 ]; do
    case "$1" in
    --output)
        mkdir -p "$2"
        output=$(cd "$2" && pwd)
        shift 2
        ;;
    --reuse)
        reuse=yes
        shift
        ;;
    --*)
        echo "error: unknown option $1" >&2
        exit 2
        ;;
    *) break ;;
    esac
done
[ $# -gt 0 ] || set -- python3.10 python3.12
for python in "$@"; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: $python is no Python of 3.10 or later" >&2
        exit 2
    }
done
pip() { # ENVIRONMENT ARGUMENTS
    local environment=$1
    shift
    "$environment/bin/python" -m pip --quiet --disable-pip-version-check "$@"
}

bash scripts/web/build.sh
rm -rf "$output/dist"
mkdir -p "$output/dist"
[ -n "$reuse" ] && [ -x "$output/build/bin/python" ] || "$1" -m venv --clear "$output/build"
pip "$output/build" install build
# From the source distribution, so that a wheel can be made of that alone.
"$output/build/bin/python" -m build --outdir "$output/dist" . >"$output/build.log"
wheel=$(echo "$output"/dist/*.whl) sdist=$(echo "$output"/dist/*.tar.gz)
"$output/build/bin/python" scripts/release_contents.py "$wheel" "$sdist"

for python in "$@"; do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    environment=$output/python$version tests=$output/tests$version
    [ -n "$reuse" ] && [ -x "$environment/bin/python" ] ||
        "$python" -m venv --clear "$environment"
    pip "$environment" install -c constraints.txt --force-reinstall --no-deps "$wheel"
    pip "$environment" install -c constraints.txt \
        ${XTINY_TORCH_INDEX:+--extra-index-url "$XTINY_TORCH_INDEX"} "$wheel[deploy,web,test]"
    rm -rf "$tests"
    mkdir "$tests"
    tar -xzf "$sdist" -C "$tests" --strip-components 1
    cd "$tests"
    # The tests find the package beside them, and there is no other than the installed one.
    rm -r monai_xtiny
    package=$(cd / && "$environment/bin/python" -I -c \
        'import monai_xtiny; print(*monai_xtiny.__path__)')
    ln -s "$package" monai_xtiny
    echo "== Python $version: $package"
    OMP_NUM_THREADS=1 "$environment/bin/python" -m pytest -q -n 2 -p no:cacheprovider \
        -m "not slow and not search"
    # Without Node, and from elsewhere.
    (cd "$output" && PATH=$environment/bin "$environment/bin/monai-xtiny" web \
        "$tests/bundle/nuclei_fluorescence_xtiny_segmentation" --single_file \
        --output "$output/page$version" | tail -n 1)
    cd "$root"
done
echo "done: $wheel"

# Sourced by the other scripts: makes .venv with the tested versions and activates it.
# usage: EXTRAS=demo . scripts/environment.sh

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=${EXTRAS:-demo}
venv=$root/.venv

find_python() {
    local candidate
    for candidate in python3 python python3.11 python3.12 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10, 3.11 or 3.12 found: install one and run this again" >&2
    return 1
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || exit 2
    echo "making $venv with $("$python" --version)"
    "$python" -m venv "$venv" || {
        echo "error: $python cannot make environments: install python3-venv" >&2
        exit 2
    }
fi
# shellcheck disable=SC1091
. "$venv/bin/activate"

# Installed again only when what is asked for changes.
wanted="$extras $(cat "$root/setup.cfg" "$root/constraints.txt" | cksum)"
stamp=$venv/installed-$extras
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing monai-xtiny[$extras] with the tested versions"
    python -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" -e "$root[$extras]"
    echo "$wanted" >"$stamp"
fi

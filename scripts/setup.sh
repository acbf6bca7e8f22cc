#!/bin/sh
# Makes .venv with simko-mlx (editable) and its development tools, or does nothing when it is there.
#
# A finished environment carries .venv/.simko-stamp, written last: the checksum of pyproject.toml
# with this folder, then $PYTHON where it was given. Anything else is made anew; the previous
# environment is put back when that fails, so a network that is down costs nothing.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.simko-stamp
state="$(cksum <pyproject.toml) $(pwd -P)"

fail() {
    echo "setup: $1" >&2
    exit 1
}

up_to_date() {
    [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$state" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(sed -n 2p "$stamp")" = "$PYTHON" ] || return 1
    .venv/bin/python -c '' 2>/dev/null # the Python beneath may have been removed
}

# MLX on a Mac is arm64 only; a Python under Rosetta says x86_64.
good_python() {
    "$1" -c '
import platform, sys
sys.exit(sys.version_info < (3, 11) or (sys.platform == "darwin" and platform.machine() != "arm64"))
' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        good_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer that MLX supports (on a Mac: arm64); name another, or leave PYTHON out."
        python=$PYTHON
        return
    fi
    for name in python3.13 python3.12 python3.11 python3.14 python3 python; do
        # A pyenv shim exists for versions that are not selected: only running it tells.
        if good_python "$name"; then
            python=$name
            return
        fi
    done
    # uv can find, or fetch, a Python that is not on the PATH.
    if [ "$have_uv" ] && uv python find ">=3.11" >/dev/null 2>&1; then
        python=$(uv python find ">=3.11")
        good_python "$python" && return
    fi
    fail "there is no Python 3.11 or newer here (on a Mac: for arm64); install one (python.org, 'brew install python', 'apt install python3') or name it with make PYTHON=/path/to/python3."
}

# Each way ends with a .venv that has simko-mlx in it, or leaves the next one a clean place.
make_with_uv() {
    [ "$have_uv" ] || return 1
    uv venv -q --python "$python" .venv && uv pip install -q --python .venv/bin/python -e '.[dev]'
}

pip_install() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 &&
        .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
}

make_with_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || return 1
    "$python" -m venv .venv && made=1 && pip_install
}

make_with_virtualenv() {
    "$python" -c 'import virtualenv' 2>/dev/null || return 1
    "$python" -m virtualenv -q .venv && made=1 && pip_install
}

make_with_outer_pip() {
    "$python" -c 'import pip, venv' 2>/dev/null || return 1
    "$python" -m venv --without-pip .venv && made=1 &&
        "$python" -m pip --python .venv/bin/python install -q --disable-pip-version-check -e '.[dev]'
}

restore() {
    rm -rf .venv
    [ ! -d .venv.previous ] || mv .venv.previous .venv
}

up_to_date && exit 0
have_uv=$(command -v uv || true)
find_python

# An interrupted run left the previous environment aside.
[ ! -d .venv.previous ] || restore
[ ! -d .venv ] || mv .venv .venv.previous
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "setup: making .venv with $python (once; takes a minute or two)" >&2
made=
done=
for way in uv venv virtualenv outer_pip; do
    rm -rf .venv
    if "make_with_$way"; then
        done=1
        break
    fi
done
if [ -z "$done" ]; then
    if [ "$have_uv" ] || [ "$made" ]; then
        fail "the packages could not be installed (see above); connect to the network and run make again."
    fi
    fail "$python has no working venv or pip; run 'apt install python3-venv' (Debian, Ubuntu) or install uv, then run make again."
fi

printf '%s\n%s\n' "$state" "${PYTHON:-}" >"$stamp"
trap - EXIT
rm -rf .venv.previous

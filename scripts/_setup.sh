# Make .venv at the repository root and install distillkit into it. Sourced by the other scripts:
#
#   source scripts/_setup.sh
#   setup onnx                    # or another extra of pyproject.toml; sets $python
#
# Environment: PYTHON           the Python to make .venv with
#              TORCH_INDEX_URL  a package index to take torch from
#              TORCH=any        take the registry's torch even if it brings CUDA and there is no NVIDIA GPU

torch_version=2.13.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python

setup() { # extra
    local extra=$1 key have
    key="$(cksum <"$root/pyproject.toml") $root"
    for have in "$extra" test; do # "test" has all that the scripts need
        if [[ -x $python && -f $venv/.installed-$have && $(<"$venv/.installed-$have") == "$key" ]]; then return; fi
    done
    make_venv
    echo "Installing distillkit and what it needs into .venv (once; this takes some minutes) ..."
    pip install --upgrade pip
    install_torch
    "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$venv/constraints.txt"
    pip install --constraint "$venv/constraints.txt" --editable "$root[$extra]"
    echo "$key" >"$venv/.installed-$extra"
}

make_venv() {
    local found
    if [[ -e $venv ]]; then
        suitable "$python" || fail "$venv has no working Python 3.11 to 3.13: remove that folder and run this again"
        return
    fi
    found=$(find_python) || fail "found no Python 3.11, 3.12 or 3.13 that has venv: install one, or name it with PYTHON=..."
    "$found" -m venv "$venv"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

suitable() { # python
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

install_torch() {
    if "$python" -c 'from importlib.util import find_spec; raise SystemExit(find_spec("torch") is None)'; then return; fi
    if [[ -n ${TORCH_INDEX_URL:-} ]]; then
        pip install --index-url "$TORCH_INDEX_URL" "torch==$torch_version"
        return
    fi
    if [[ ${TORCH:-} != any && $(uname) != Darwin ]] && ! nvidia-smi >/dev/null 2>&1 && brings_cuda; then
        fail "this machine has no NVIDIA GPU, and the package registry's torch $torch_version would bring gigabytes of CUDA libraries
       set TORCH_INDEX_URL to an index of CPU builds (pytorch.org names it), or install one into .venv, or set TORCH=any to accept; then run this again"
    fi
    pip install "torch==$torch_version"
}

brings_cuda() { # fast-deps: read the dependencies without downloading the wheels
    local report
    report=$(pip install --dry-run --ignore-installed --use-feature=fast-deps --report - "torch==$torch_version") ||
        fail "could not find out what torch $torch_version brings (the message is above)"
    "$python" -c '
import json, sys
names = [package["metadata"]["name"].lower() for package in json.load(sys.stdin)["install"]]
sys.exit(not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names))
' <<<"$report"
}

pip() {
    "$python" -m pip --quiet --quiet --disable-pip-version-check "$@"
}

fail() { # message
    echo "error: $1" >&2
    exit 2
}

#!/usr/bin/env bash
# Create .venv with everything that the demo and the tests need. Usage: tools/setup_env.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
torch_version=$(sed -n 's/^torch==//p' constraints.txt)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "bevstack needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 1
}
echo "setup: virtual environment in $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
    echo "cannot create a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2
    exit 1
}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# A missing local index is no error, and pip says so once for every package.
quiet() { grep -v -e 'is ignored: it is neither a file nor a directory' >&2 || true; }

if [ -e /dev/nvidia0 ] || nvidia-smi -L >/dev/null 2>&1; then
    echo "setup: NVIDIA GPU found, torch with CUDA"
    pip install -q "torch==$torch_version" 2> >(quiet)
elif [ -e /dev/kfd ]; then
    echo "setup: AMD GPU found, torch for ROCm"
    pip install -q torch --index-url https://download.pytorch.org/whl/rocm7.0 2> >(quiet)
else
    echo "setup: no GPU found, torch for the CPU"
    # First what pip is set up for (a wheel folder, a mirror), then PyTorch's own index of CPU builds.
    pip install -q "torch==$torch_version+cpu" 2>/dev/null \
        || pip install -q "torch==$torch_version+cpu" \
            --extra-index-url https://download.pytorch.org/whl/cpu 2> >(quiet) \
        || pip install -q "torch==$torch_version" 2> >(quiet)
fi

echo "setup: bevstack and its dependencies (about two minutes)"
pip install -q -c constraints.txt -e '.[all,dev]' 2> >(quiet)
# A yardstick of the tests and benchmarks, with wheels for few systems.
pip install -q -c constraints.txt -e '.[spconv]' >/dev/null 2>&1 \
    || echo "setup: no wheel of spconv for this system; what is compared with it is skipped"

# open3d's wheel links against libusb, which slim systems lack.
if ! "$venv/bin/python" -c 'import open3d' >/dev/null 2>&1; then
    echo "setup: installing the system library libusb-1.0-0 for open3d"
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    { $as_root apt-get update -qq && $as_root apt-get install -y -qq libusb-1.0-0; } >/dev/null 2>&1 || true
    "$venv/bin/python" -c 'import open3d' >/dev/null 2>&1 || {
        echo "open3d does not import, and this script could not mend it. Run:" >&2
        echo "    sudo apt-get install libusb-1.0-0     (Fedora: sudo dnf install libusb1)" >&2
        "$venv/bin/python" -c 'import open3d' 2>&1 | tail -n 1 >&2
        exit 1
    }
fi
echo "setup: done"

#!/usr/bin/env bash
# Installs what mlad's GPU code is built with, nvcc and the CUDA runtime, from NVIDIA's packages on
# PyPI: 100 MB, for a machine (or an image's build stage) that has no CUDA toolkit. No GPU and no
# driver is needed to build.
#
#   cuda.sh [DIR]     DIR is /usr/local/cuda, where make looks
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-/usr/local/cuda}
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)

if [ -e "$target/bin/nvcc" ]; then
    echo "cuda: $target has nvcc already" >&2
    exit
fi
scripts/setup.sh cuda
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
python3 -m venv "$stage/venv"
"$stage/venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
    --target "$stage/packages" "${packages[@]}"
mkdir -p "$target"
cp -r "$stage"/packages/nvidia/cu13/. "$target"
cp "$stage"/packages/nvidia_cuda_runtime-*.dist-info/licenses/License.txt "$target/EULA.txt"
[ -e "$target/lib64" ] || ln -s lib "$target/lib64"
"$target/bin/nvcc" --version >&2

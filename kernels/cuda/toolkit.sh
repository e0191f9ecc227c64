#!/bin/sh
# Prints the folder of a CUDA toolkit that can compile the kernels (CUDA_HOME for cargo): the one that is installed, or
# CUDA 13.0 from its Python packages (100 MB once, kept in $POLYLINK_CACHE). Needs no GPU and no driver.
set -eu
cache="${POLYLINK_CACHE:-$HOME/.cache/polylink}"
# A driver runs kernels of its own release and older ones: 13.0 is what an R580 driver runs.
packages='cuda-toolkit[nvcc,cudart,crt,nvvm,cccl]==13.0.2'
found=${NVCC:-$(command -v nvcc || true)}
for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${found%/bin/nvcc}" /usr/local/cuda; do
    if [ -n "$home" ] && "$home/bin/nvcc" --version >/dev/null 2>&1; then
        echo "$home"
        exit 0
    fi
done

venv="$cache/cuda-13.0"
if [ ! -f "$venv/complete" ]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "missing: nvcc - CUDA 13.0 from your distribution, or python3 with venv (Debian: apt install python3-venv)" >&2
        exit 1
    fi
    echo "installing the CUDA 13.0 compiler in $venv (100 MB, once)" >&2
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$packages" >&2
    touch "$venv/complete"
fi
for home in "$venv"/lib/python3.*/site-packages/nvidia/cu13; do
    if "$home/bin/nvcc" --version >/dev/null 2>&1; then
        echo "$home"
        exit 0
    fi
done
echo "no nvcc runs in $venv: remove the folder and try again" >&2
exit 1

#!/bin/sh
# What is carried to a machine that has a GPU and no Rust toolchain: `polylink` with its CUDA kernels, and the test
# programs of the kernels, stripped, in target/gpu and in one archive of it. `bench/gpu.sh` runs them there.
# Usage: bundle.sh [polylink] [tests]      (both, if none is named)
set -eu
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- polylink tests
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${POLYLINK_CACHE:-$HOME/.cache/polylink}/target}"
CUDA_HOME=$(./kernels/cuda/toolkit.sh)
export CUDA_HOME
out=target/gpu
archive_mib_max=60
mkdir -p "$out/bin"

for part in "$@"; do
    case $part in
    polylink)
        cargo build --locked -p polylink --features cuda-aot
        strip -o "$out/bin/polylink" "$CARGO_TARGET_DIR/debug/polylink"
        ;;
    tests)
        # The kernels' own tests, and those of its interface that look for a GPU.
        set -- --lib
        for test in $(grep -l 'cuda' kernels/tests/*.rs); do
            set -- "$@" --test "$(basename "$test" .rs)"
        done
        built="$out/built.json"
        cargo test --locked -p polylink-kernels --features cuda-aot --no-run "$@" --message-format=json >"$built"
        rm -f "$out"/bin/test-*
        sed -n 's/.*"name":"\([^"]*\)".*"test":true.*"executable":"\([^"]*\)".*/\1 \2/p' "$built" | while read -r name program; do
            strip -o "$out/bin/test-$name" "$program"
        done
        rm -f "$built"
        [ -x "$out/bin/test-polylink_kernels" ] || { echo "bundle.sh: cargo named no test program" >&2; exit 1; }
        ;;
    *) echo "bundle.sh: $part: polylink or tests is expected" >&2; exit 1 ;;
    esac
done

# Tests look for their fixtures where they were built: bench/gpu.sh makes that path lead to its own checkout.
{
    echo "root $PWD"
    echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo +)"
    echo "nvcc $("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')"
} >"$out/about"
tar -C "$out" -cf - about bin | gzip -6 >"$out/polylink-gpu.tar.gz"
ls -l "$out/bin" | awk 'NR > 1 { printf "%6.1f MiB  %s\n", $5 / 1048576, $9 }'
bytes=$(wc -c <"$out/polylink-gpu.tar.gz")
echo "$out/polylink-gpu.tar.gz: $((bytes / 1048576)) MiB"
[ "$bytes" -le $((archive_mib_max * 1048576)) ] || { echo "bundle.sh: more than $archive_mib_max MiB" >&2; exit 1; }

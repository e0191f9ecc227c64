#!/bin/sh
# What is carried to a machine that has a GPU and no Rust toolchain: `polylink` with its CUDA kernels, and the test
# programs of the kernels, stripped, in target/gpu; both together in one archive too. `bench/gpu.sh` runs them there.
# Fails if the program or the archive is larger than is meant.
# Usage: bundle.sh [polylink] [tests]      (both, if none is named)
set -eu
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- polylink tests
parts=" $* "
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${POLYLINK_CACHE:-$HOME/.cache/polylink}/target}"
CUDA_HOME=$(./kernels/cuda/toolkit.sh)
export CUDA_HOME
out=target/gpu
archive=$out/polylink-gpu.tar.gz
# The aim is 24.
polylink_mib_max=32
archive_mib_max=60
mkdir -p "$out/bin"
rm -f "$archive"

# within FILE MIB_MAX: says how large a file is, and fails if it is larger.
within() {
    wc -c <"$1" | awk -v file="$1" -v most="$2" '{
        printf "%s: %.1f MiB, at most %d\n", file, $1 / 1048576, most
        exit ($1 > most * 1048576)
    }' || { echo "bundle.sh: $1 is larger than $2 MiB" >&2; exit 1; }
}

for part in "$@"; do
    case $part in
    polylink)
        cargo build --locked --profile carry -p polylink --features cuda-aot
        cp "$CARGO_TARGET_DIR/carry/polylink" "$out/bin/polylink"
        within "$out/bin/polylink" "$polylink_mib_max"
        ;;
    tests)
        # The kernels' own tests, and those of its interface that look for a GPU.
        set -- --lib
        for test in $(grep -l 'cuda' kernels/tests/*.rs); do
            set -- "$@" --test "$(basename "$test" .rs)"
        done
        built="$out/built.json"
        cargo test --locked --profile carry -p polylink-kernels --features cuda-aot --no-run "$@" --message-format=json >"$built"
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
ls -l "$out/bin" | awk 'NR > 1 { printf "%6.1f MiB  %s\n", $5 / 1048576, $9 }'
case $parts in
*" polylink tests "* | *" tests polylink "*)
    tar -C "$out" -cf - about bin | gzip -6 >"$archive"
    within "$archive" "$archive_mib_max"
    ;;
esac

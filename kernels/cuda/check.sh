#!/bin/sh
# Compiles every CUDA kernel for sm_80 and sm_90 (or sm_90a), which needs no GPU, and prints what ptxas says of each: its
# registers, its stack, what it spills. Fails if one that runs in every step spills, or if the compiler serialises wgmma.
# Usage: check.sh [FILE.ptxas…]      (without files it builds, and reads what the build kept)
set -eu
cd "$(dirname "$0")/../.."
if [ $# -eq 0 ]; then
    CUDA_HOME=$(./kernels/cuda/toolkit.sh)
    export CUDA_HOME
    built=$(cargo check --locked -p polylink-kernels --features cuda-aot --message-format=json)
    out=$(printf '%s\n' "$built" | sed -n 's/.*"reason":"build-script-executed","package_id":"[^"]*kernels[^"]*".*"out_dir":"\([^"]*\)".*/\1/p')
    [ -n "$out" ] || { echo "check.sh: cargo names no output folder of the kernels' build script" >&2; exit 1; }
    for source in kernels/cuda/*.cu; do
        report="$out/$(basename "$source" .cu).ptxas"
        [ -f "$report" ] || { echo "check.sh: $source was not compiled" >&2; exit 1; }
        set -- "$@" "$report"
    done
fi
awk '
    function flush() {
        if (name == "") return
        kernels++
        spills = stores + loads
        mark = ""
        # Kernels of a step: all but those that pack weights when a model is loaded.
        if (spills > 0 && name !~ /pack|prepare/) { mark = "  SPILLS"; bad++ }
        printf "%-7s %4d registers %6d B shared %5d B stack %5d B spilled  %s:%s%s\n", arch, registers, shared, stack, spills, file, name, mark
        name = ""
    }
    FNR == 1 { flush(); n = split(FILENAME, parts, "/"); file = parts[n]; sub(/\.ptxas$/, "", file) }
    /Compiling entry function/ { flush(); split($0, quoted, "\047"); name = quoted[2]; arch = quoted[4]; stack = stores = loads = registers = shared = 0 }
    /bytes stack frame/ { stack = $1 + 0; stores = $5 + 0; loads = $9 + 0 }
    /Used [0-9]+ registers/ {
        for (i = 1; i < NF; i++) { if ($i == "Used") registers = $(i + 1); if ($(i + 2) == "smem,"  || $(i + 2) == "smem") shared = $i }
    }
    /wgmma.*serializ|setmaxnreg ignored/ { print "  " file ": " $0; serial++ }
    /warning/ { print "  " file ": " $0 }
    END {
        flush()
        printf "%d kernels; %d that spill, %d warnings of serialised or ignored instructions\n", kernels, bad, serial
        if (kernels == 0) { print "nothing was compiled"; exit 1 }
        exit bad + serial > 0
    }
' "$@"

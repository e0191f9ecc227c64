#!/bin/sh
# The peers that `polylink bench engine` measures beside us, from their packages: transformers with torch in a Python
# environment, and llama.cpp (server and batched bench) built from the sources inside llama-cpp-python's.
# They go to $POLYLINK_CACHE/peers; what is there already is kept. Needs python3 with venv, cmake, ninja and a C++ compiler;
# takes about ten minutes and 3 GB.
set -eu
peers="${POLYLINK_CACHE:-$HOME/.cache/polylink}/peers"
llama_cpp_python=0.3.36

missing=""
for tool in python3 cmake ninja c++; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
    echo "bench/peers/install.sh: missing:$missing (Debian: python3-venv cmake ninja-build g++)" >&2
    exit 1
fi

# The AMX path of llama.cpp built with gcc before 13 dies of an illegal instruction in Q8_0 and Q4_0.
compiler=""
if grep -qs amx_int8 /proc/cpuinfo && ! c++ --version | grep -qi clang && [ "$(c++ -dumpversion | cut -d. -f1)" -lt 13 ]; then
    if ! command -v clang++ >/dev/null; then
        echo "bench/peers/install.sh: this processor has AMX: install clang, or gcc 13 or newer as c++" >&2
        exit 1
    fi
    compiler="-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++"
fi

mkdir -p "$peers"
[ -x "$peers/bin/python" ] || python3 -m venv "$peers"
if ! "$peers/bin/python" -c "import torch, transformers, gguf" 2>/dev/null; then
    "$peers/bin/pip" install --quiet --disable-pip-version-check \
        torch==2.15.0 transformers==5.24.0 accelerate gguf==0.19.0 numpy safetensors
fi

server="$peers/llama.cpp/bin/llama-server"
if [ ! -x "$server" ] || [ ! -x "$peers/llama.cpp/bin/llama-batched-bench" ]; then
    sources="$peers/src/llama_cpp_python-$llama_cpp_python"
    if [ ! -d "$sources/vendor/llama.cpp" ]; then
        mkdir -p "$peers/src"
        "$peers/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
            --dest "$peers/src" "llama-cpp-python==$llama_cpp_python"
        tar -C "$peers/src" -xzf "$sources.tar.gz"
    fi
    # $compiler is two words or none.
    # shellcheck disable=SC2086
    cmake -G Ninja -S "$sources/vendor/llama.cpp" -B "$peers/llama.cpp" $compiler -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF >"$peers/llama.cpp.log"
    ninja -C "$peers/llama.cpp" llama-server llama-batched-bench llama-bench
fi
echo "peers: $("$peers/bin/python" -c 'import torch, transformers; print(f"transformers {transformers.__version__} on torch {torch.__version__}")'), $server"

#!/usr/bin/env bash
# Runs CUDA kernels without a GPU: a libcuda.so of our own translates their PTX to C, which gcc compiles.
#
#   tests/ptx/run.sh tests              builds the tests of sat-core for CUDA and runs them
#   tests/ptx/run.sh PROGRAM ARG...     runs any program that was built with `--features cuda`
#
# Needs gcc, python3 and what Burn's feature `cuda` needs to build. PTX_CACHE names the folder for what was
# translated; PTX_REVERSE=1 runs the threads of a block backwards, to show races.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:?tests, or a program}
programs=()
if [ "$what" = tests ]; then
    # Before the toolkit is looked for: build scripts run again where CUDA_PATH changes.
    export CUDARC_CUDA_VERSION="${CUDARC_CUDA_VERSION:-13000}"
    list=$(cd "$here/../.." && cargo test -p sat-core --release --no-run --features cuda \
        --test suite --test precision --test norm --test step --message-format json |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["kind"] == ["test"]:
        print(message["executable"])')
    mapfile -t programs <<<"$list"
fi
# shellcheck source=../../benches/gpu/libdevice.sh
. "$here/../../benches/gpu/libdevice.sh"
libdevice
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
# Each version of the tools translates anew.
version=$(cat "$here/driver.c" "$here/runtime.h" "$here/translate.py" | cksum | cut -d " " -f 1)
PTX_CACHE=$(realpath -m "${PTX_CACHE:-$temporary}")/$version
mkdir -p "$PTX_CACHE"
export PTX_CACHE PTX_TOOLS="$here"
gcc -O2 -shared -fPIC -Wall -Wl,-soname,libcuda.so.1 "$here/driver.c" -o "$temporary/libcuda.so" -lm -ldl -lpthread
export LD_LIBRARY_PATH="$temporary${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ "$what" != tests ]; then
    "$@"
    exit
fi
cd "$here/../../crates/sat-core"
failed=()
for program in "${programs[@]}"; do "$program" || failed+=("$program"); done
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}" >&2 && exit 1; fi

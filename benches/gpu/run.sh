#!/usr/bin/env bash
# Every GPU test and bench, on a machine with an NVIDIA GPU and no Rust. Two steps:
#
#   benches/gpu/run.sh pack DIR      where Rust and LLVM are: builds the binaries with and without Burn's
#                                    fusion into DIR, packed with xz (31 MB each)
#   benches/gpu/run.sh run DIR NAME OUT
#                                    on the GPU machine: runs the tests of sat-core, then the benches beside
#                                    PyTorch eager and torch.compile, and writes OUT/activation-NAME-*.json
set -euo pipefail
cd "$(dirname "$0")/../.."

pack() {
    local dir=$1
    mkdir -p "$dir"
    export CUDARC_CUDA_VERSION="${CUDARC_CUDA_VERSION:-13000}"
    for fusion in off on; do
        local features=cuda
        [ "$fusion" = on ] && features=cuda,fusion
        cargo bench --bench device --no-run --features "$features" --message-format json |
            python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "device":
        print(message["executable"])' | tail -1 | xargs -I{} cp {} "$dir/device-$fusion"
        cargo test -p sat-core --release --no-run --features "$features" --test suite --test precision --test norm \
            --message-format json |
            python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["kind"] == ["test"]:
        print(message["target"]["name"], message["executable"])' |
            while read -r name path; do cp "$path" "$dir/$name-$fusion"; done
    done
    strip "$dir"/*-off "$dir"/*-on
    xz -T0 -f "$dir"/*-off "$dir"/*-on
}

run() {
    local dir=$1 name=$2 out=$3
    mkdir -p "$out"
    local work
    work=$(mktemp -d)
    cp "$dir"/*.xz "$work"
    xz -d "$work"/*.xz
    chmod +x "$work"/*
    for fusion in off on; do
        for test in suite precision norm; do
            "$work/$test-$fusion" || echo "FAILED: $test, fusion $fusion" | tee -a "$out/failures.txt"
        done
        for dtype in f32 bf16; do
            "$work/device-$fusion" --device cuda --dtype "$dtype" --machine "$name" \
                --json "$out/activation-$name-fusion-$fusion-$dtype.json" |
                tee "$out/activation-$name-fusion-$fusion-$dtype.md"
        done
    done
    for dtype in float32 bfloat16; do
        python3 benches/peers/activation.py --device cuda --dtype "$dtype" --elements 67108864 \
            --json "$out/activation-$name-pytorch-$dtype.json"
        python3 benches/peers/activation.py --device cuda --dtype "$dtype" --elements 67108864 --compile \
            --json "$out/activation-$name-pytorch-compiled-$dtype.json"
    done
}

case "${1:-}" in
pack) pack "${2:?folder}" ;;
run) run "${2:?folder}" "${3:?name of the machine}" "${4:?folder for results}" ;;
*) sed -n '2,9p' "$0" && exit 2 ;;
esac

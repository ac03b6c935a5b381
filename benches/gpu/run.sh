#!/usr/bin/env bash
# Every GPU test and bench, on a machine with an NVIDIA GPU and no Rust:
#
#   benches/gpu/run.sh pack DIR      where Rust and LLVM are: builds the binaries with and without Burn's
#                                    fusion into DIR, packed with xz (31 MB each)
#   benches/gpu/run.sh run DIR NAME OUT
#                                    on the GPU machine: runs the tests of sat-core, then the benches beside
#                                    PyTorch eager and torch.compile, and writes OUT/activation-NAME-*.json
#                                    and OUT/training-NAME-*.json
#   benches/gpu/run.sh steps DIR NAME OUT
#                                    the same for whole training steps alone
#   benches/gpu/run.sh experiments DIR CIFAR10 TEST OUT [OPTION...]
#                                    the experiments of docs/results on the folder CIFAR10, tested on the first
#                                    1,000 images of TEST, a binary batch; goes on where it was stopped. Options
#                                    such as `--seeds 0 --stage train` are those of the example
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/gpu/libdevice.sh

pack() {
    local dir=$1
    mkdir -p "$dir"
    export CUDARC_CUDA_VERSION="${CUDARC_CUDA_VERSION:-13000}"
    for fusion in off on; do
        local features=cuda
        [ "$fusion" = on ] && features=cuda,fusion
        {
            cargo bench --bench device --bench training_step --no-run --features "$features" \
                --message-format json
            cargo build --release --example experiment --features "$features" --message-format json
            cargo test -p sat-core --release --no-run --features "$features" --test suite --test precision \
                --test norm --test step --message-format json
        } | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["kind"][0] in ("bench", "test", "example"):
        print(message["target"]["name"], message["executable"])' |
            while read -r name path; do cp "$path" "$dir/$name-$fusion"; done
    done
    strip "$dir"/*-off "$dir"/*-on
    xz -T0 -f "$dir"/*-off "$dir"/*-on
}

unpack() {
    local dir=$1 work
    work=$(mktemp -d)
    cp "$dir"/*.xz "$work"
    xz -d "$work"/*.xz
    chmod +x "$work"/*
    echo "$work"
}

run() {
    local dir=$1 name=$2 out=$3
    libdevice
    mkdir -p "$out"
    local work
    work=$(unpack "$dir")
    for fusion in off on; do
        for test in suite precision norm step; do
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
    steps "$@"
}

# PyTorch first, so that our tables set its times beside ours: eager in TF32 is what Burn's f32 is
# compared with, and its autocast to bf16 what our mixed precision is.
steps() {
    local dir=$1 name=$2 out=$3
    libdevice
    mkdir -p "$out"
    local work
    work=$(unpack "$dir")
    local of_peer=(--device cuda --layouts channels-last --batch 128 --activations relu,silu --repeats 3)
    for precision in tf32 bf16; do
        python3 benches/peers/training_step.py "${of_peer[@]}" --precision "$precision" \
            --json "$out/training-$name-pytorch-$precision.json"
        python3 benches/peers/training_step.py "${of_peer[@]}" --precision "$precision" --compile \
            --networks resnet18_cifar,resnet50 --json "$out/training-$name-pytorch-compiled-$precision.json"
    done
    local ours peers
    for fusion in off on; do
        for precision in "full tf32" "bf16-mixed bf16"; do
            read -r ours peers <<<"$precision"
            "$work/training_step-$fusion" --device cuda --precision "$ours" --batch 128 --activations relu,silu \
                --repeats 3 --peer "$out/training-$name-pytorch-$peers.json" \
                --json "$out/training-$name-fusion-$fusion-$ours.json" |
                tee "$out/training-$name-fusion-$fusion-$ours.md"
        done
    done
}

experiments() {
    local dir=$1 data=$2 test=$3 out=$4
    shift 4
    libdevice
    local work
    work=$(unpack "$dir")
    for plan in activations-cifar10 gradient-quality controls scaling-cifar10; do
        "$work/experiment-on" --plan "examples/experiments/$plan.toml" --device cuda \
            --scale examples/experiments/scales/cifar10.toml --data "cifar10:$data" \
            --test-data "cifar10-bin:$test" --out "$out/$plan" "$@"
    done
}

case "${1:-}" in
pack) pack "${2:?folder}" ;;
run) run "${2:?folder}" "${3:?name of the machine}" "${4:?folder for results}" ;;
steps) steps "${2:?folder}" "${3:?name of the machine}" "${4:?folder for results}" ;;
experiments)
    shift
    experiments "${1:?folder}" "${2:?folder of CIFAR-10}" "${3:?file of test images}" \
        "${4:?folder for results}" "${@:5}"
    ;;
*) sed -n '2,15p' "$0" && exit 2 ;;
esac

#!/usr/bin/env python3
"""The passes of benches/norm.rs in PyTorch on the CPU: milliseconds, the fastest of many.

    python benches/peers/norm.py [--threads 2] [--json FILE]

Nothing but torch is needed. Most of the time goes to page faults unless the allocator keeps pages, as
the one of the Rust bench does: preload jemalloc with
MALLOC_CONF=retain:true,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0. As in the Rust bench the gradient of y is a tensor of ones made anew
each time, and the input is a leaf that is held elsewhere.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F


def fastest(run, seconds):
    best, rounds, started = float("inf"), 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - started < seconds:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        rounds += 1
    return 1e3 * best


def one_pass(shape, activation, mode, residual, layout):
    layer = nn.BatchNorm2d(shape[1])
    if mode == "attack":
        layer.eval().requires_grad_(False)

    def values():
        return torch.empty(shape).uniform_(-5, 5).to(memory_format=layout)

    x, r = values(), values() if residual else None

    def run():
        leaf = x.detach().requires_grad_()
        z = layer(leaf)
        if residual:
            other = r.detach().requires_grad_()
            # In place where autograd allows it, as torchvision writes it.
            z += other
        y = activation(z, inplace=True) if activation is F.relu else activation(z)
        y.backward(torch.ones_like(y))
        for parameter in layer.parameters():
            parameter.grad = None

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--shape", type=int, nargs=4, default=[64, 64, 32, 32])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layouts = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
    rows = []
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads, {arguments.shape}")
    for name, activation in [("relu", F.relu), ("silu", F.silu)]:
        for mode in ["training", "attack"]:
            for residual in [False, True]:
                for layout, memory_format in layouts.items():
                    run = one_pass(arguments.shape, activation, mode, residual, memory_format)
                    ms = fastest(run, arguments.seconds)
                    rows.append(
                        {"activation": name, "mode": mode, "residual": residual,
                         "layout": layout, "ms": ms}
                    )
                    print(f"{name:5} {mode:9} residual={residual!s:5} {layout:14} {ms:8.2f} ms")
    if arguments.json:
        report = {"torch": torch.__version__, "threads": arguments.threads,
                  "shape": arguments.shape, "rows": rows}
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()

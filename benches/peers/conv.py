#!/usr/bin/env python3
"""The layers of benches/conv.rs in PyTorch on the CPU: milliseconds, the fastest of many.

    GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=40000000000 \\
        python benches/peers/conv.py [--threads 2] [--only TEXT] [--json FILE]

Nothing but torch is needed; the layers are read from benches/conv.rs. The tunables make glibc keep
pages, as the allocator of the Rust bench does. `y` is the forward pass, `y dx` with the gradient of the
input, `y dw` with that of the weight, each from a gradient of ones.
"""

import argparse
import json
import pathlib
import re
import time

import torch
from torch import nn

LAYER = re.compile(r'\("([^"]+)", \[([0-9, ]+)\]\)')


def layers():
    text = (pathlib.Path(__file__).parent.parent / "conv.rs").read_text()
    return [(name, [int(n) for n in sizes.split(",")]) for name, sizes in LAYER.findall(text)]


def fastest(run, seconds):
    best, rounds, started = float("inf"), 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - started < seconds:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        rounds += 1
    return 1e3 * best


def one_pass(sizes, gradient, layout):
    batch, inputs, outputs, image, kernel, stride, groups = sizes
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layer = layer.to(memory_format=layout).requires_grad_(gradient == "y dw")
    x = torch.empty(batch, inputs, image, image).uniform_(-0.5, 0.5).to(memory_format=layout)

    def run():
        leaf = x.detach().requires_grad_(gradient == "y dx")
        y = layer(leaf)
        if gradient != "y":
            y.backward(torch.ones_like(y))
            layer.weight.grad = None

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layouts = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
    rows = []
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads")
    for layer, sizes in layers():
        if arguments.only not in layer:
            continue
        for gradient in ["y", "y dx", "y dw"]:
            ms = {name: fastest(one_pass(sizes, gradient, layout), arguments.seconds)
                  for name, layout in layouts.items()}
            rows.append({"layer": layer, "pass": gradient, "ms": ms})
            numbers = "  ".join(f"{name} {value:8.2f} ms" for name, value in ms.items())
            print(f"{layer:27} {gradient:5} {numbers}", flush=True)
    if arguments.json:
        report = {"torch": torch.__version__, "threads": arguments.threads, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""PyTorch's activations: eager mode or torch.compile; forward, and forward with backward from a gradient of ones.

`cargo bench --bench activation -- --pytorch python` runs it with `--serve`: it then answers each line "ACTIVATION ELEMENTS
PASS MILLISECONDS" with the milliseconds of the fastest of many runs, or with "none". By itself it runs everything:

    python benches/peers/activation.py --threads 2 --json peer.json
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky-relu:0.01": lambda x: F.leaky_relu(x, 0.01),
    "softplus": F.softplus,
    "psoftplus:10": lambda x: F.softplus(x, beta=10),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "elu:1": F.elu,
    "celu:1": F.celu,
    # What PyTorch has no function for, as a user would write it.
    "smooth-relu:400": lambda x: F.relu(x) - torch.log1p(400 * F.relu(x)) / 400,
    "swish:1": lambda x: x * torch.sigmoid(1.0 * x),
    "squareplus:4": lambda x: (x + torch.sqrt(x * x + 4)) / 2,
}


def fastest(run, seconds):
    for _ in range(3):
        run()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


class Passes:
    """The two passes over numbers that lie on a device."""

    def __init__(self, args, elements):
        data = (torch.arange(elements) * 7919 % 10_007).float() / 1000 - 5
        self.data = data.to(args.device, getattr(torch, args.dtype))
        self.leaf = self.data.clone().requires_grad_()
        self.ones = torch.ones_like(self.data)
        self.wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None

    def copy(self):
        self.data.clone()
        self.wait()

    def of(self, f, kind):
        def forward():
            with torch.no_grad():
                f(self.data)
            self.wait()

        def both():
            torch.autograd.grad(f(self.leaf), self.leaf, self.ones)
            self.wait()

        return {"forward": forward, "forward+backward": both}[kind]


def serve(args):
    passes = None
    for line in sys.stdin:
        name, elements, kind, milliseconds = line.split()
        if name not in ACTIVATIONS:
            print("none", flush=True)
            continue
        if passes is None or passes.data.numel() != int(elements):
            passes = Passes(args, int(elements))
        print(fastest(passes.of(ACTIVATIONS[name], kind), float(milliseconds) / 1e3), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--elements", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--milliseconds", type=float, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager mode")
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--json")
    output.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    mode = "torch.compile" if args.compile else "eager"
    software = f"PyTorch {torch.__version__} {mode}, {args.device}, {args.dtype}"
    if args.compile:
        ACTIVATIONS.update({name: torch.compile(f) for name, f in ACTIVATIONS.items()})
    if args.serve:
        print(software, flush=True)
        return serve(args)
    rows = []
    for n in args.elements:
        passes = Passes(args, n)
        copy = fastest(passes.copy, args.milliseconds / 1e3)
        rows.append({"activation": "copy", "elements": n, "pass": "forward", "ms": copy})
        for name, f in ACTIVATIONS.items():
            for kind in ["forward", "forward+backward"]:
                ms = fastest(passes.of(f, kind), args.milliseconds / 1e3)
                rows.append({"activation": name, "elements": n, "pass": kind, "ms": ms})
                print(f"{n:>10} {name:<18} {kind:<17} {ms:9.3f} ms", flush=True)
    with open(args.json, "w") as file:
        json.dump({"software": software, "threads": args.threads, "rows": rows}, file)


if __name__ == "__main__":
    main()

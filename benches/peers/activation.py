"""PyTorch's activations, for `cargo bench --bench activation -- --peer FILE`.

Eager mode or torch.compile, the fastest of many runs; forward, and forward with backward from a gradient of ones.

    python benches/peers/activation.py --threads 2 --json peer.json
"""

import argparse
import json
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
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--elements", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--milliseconds", type=float, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager mode")
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    rows = []
    for n in args.elements:
        data = (torch.arange(n) * 7919 % 10_007).float() / 1000 - 5
        data = data.to(args.device, getattr(torch, args.dtype))
        copy = fastest(lambda: (data.clone(), wait()), args.milliseconds / 1e3)
        rows.append({"activation": "copy", "elements": n, "pass": "forward", "ms": copy})
        for name, f in ACTIVATIONS.items():
            if args.compile:
                f = torch.compile(f)
            leaf = data.clone().requires_grad_()
            ones = torch.ones_like(data)

            def forward():
                with torch.no_grad():
                    f(data)
                wait()

            def both():
                torch.autograd.grad(f(leaf), leaf, ones)
                wait()

            for kind, run in [("forward", forward), ("forward+backward", both)]:
                ms = fastest(run, args.milliseconds / 1e3)
                rows.append({"activation": name, "elements": n, "pass": kind, "ms": ms})
                print(f"{n:>10} {name:<18} {kind:<17} {ms:9.3f} ms", flush=True)
    with open(args.json, "w") as file:
        mode = "torch.compile" if args.compile else "eager"
        software = f"PyTorch {torch.__version__} {mode}, {args.device}, {args.dtype}"
        json.dump({"software": software, "threads": args.threads, "rows": rows}, file)


if __name__ == "__main__":
    main()

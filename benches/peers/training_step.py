#!/usr/bin/env python3
"""The steps of benches/training_step.rs in PyTorch: milliseconds, the fastest of a few.

    GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=40000000000 \\
        python benches/peers/training_step.py [--threads 2] [--train 1,10] [--evaluate 20] [--json FILE]
    python benches/peers/training_step.py --device cuda --layouts channels-last --batch 128 \\
        --precision bf16 --compile

torch and torchvision are needed. The tunables make glibc keep pages, as the allocator of the Rust bench does.
Networks are torchvision's, or built of its blocks; the attack runs in evaluation mode on the input's
gradient alone, from a random start; the update is SGD with momentum 0.9, weight decay and label smoothing.
Each row runs in a process of its own: its memory is the most that was resident beyond what was after the
imports, or on a GPU the most that PyTorch's allocator has given out. `tf32` lets f32 convolutions round
to TF32, `bf16` is autocast.
"""

import argparse
import contextlib
import json
import multiprocessing
import pathlib
import resource
import time

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

EPS = 8 / 255
LAYOUTS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}


class SmoothReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(400.0))

    def forward(self, x):
        positive = torch.relu(x)
        return positive - torch.log1p(self.alpha * positive) / self.alpha


# In place where torchvision's networks are.
ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "smooth-relu-learnable": SmoothReLU,
}


def activate(module, activation):
    for name, child in module.named_children():
        if isinstance(child, (nn.ReLU, nn.SiLU)):
            setattr(module, name, activation())
        else:
            activate(child, activation)
    return module


def resnet20():
    layers, inputs = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for outputs in [16, 32, 64]:
        for block in range(3):
            stride, shortcut = 1, None
            if inputs != outputs:
                stride = 2
                conv = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
                shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
            layers.append(BasicBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet18_cifar():
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS = {
    "resnet20": (resnet20, 32),
    "resnet18_cifar": (resnet18_cifar, 32),
    "resnet50": (torchvision.models.resnet50, 224),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 224),
}


def attack(forward, model, images, labels, steps):
    model.eval()
    size = EPS if steps == 1 else 2.5 * EPS / steps
    lower, upper = (images - EPS).clamp_min(0), (images + EPS).clamp_max(1)
    x = (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(steps):
        x.requires_grad_()
        loss = F.cross_entropy(forward(x).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x = torch.clamp(x + size * gradient.sign(), lower, upper)
    model.train()
    return x.detach()


def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row(task):
    arguments, network, activation, layout, work, steps = task
    torch.set_num_threads(arguments.threads)
    tf32 = arguments.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    before = resident()
    device = torch.device(arguments.device)
    build, size = NETWORKS[network]
    batch = arguments.batch or (16 if size > 32 else 128)
    layout_of = {"memory_format": LAYOUTS[layout]}
    model = activate(build(), ACTIVATIONS[activation]).to(device, **layout_of)
    images = torch.rand(batch, 3, size, size).to(device, **layout_of)
    labels = (torch.arange(batch) % 10).to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    forward = torch.compile(model) if arguments.compile else model
    if arguments.precision == "bf16":
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)
    else:
        autocast = contextlib.nullcontext

    def once():
        with autocast():
            # Weights stay leaves with gradients in training; the attack asks for none of theirs.
            x = attack(forward, model, images, labels, steps) if steps else images
            if work == "evaluate":
                model.eval()
                with torch.no_grad():
                    return forward(x).argmax(1).eq(labels).sum().item()
            loss = F.cross_entropy(forward(x).float(), labels, label_smoothing=0.1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        return loss.item()

    times = []
    for _ in range(arguments.repeats + (3 if arguments.compile else 1)):
        start = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resident() - before
    return {
        "network": network, "activation": activation, "work": work, "steps": steps,
        "batch": batch, "layout": layout, "ms": min(times[-arguments.repeats:]),
        "memory_mib": memory / 2**20,
    }


def main():
    names = lambda text: text.split(",")
    numbers = lambda text: [int(number) for number in text.split(",") if number]
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=names, default=list(NETWORKS))
    parser.add_argument("--activations", type=names, default=list(ACTIVATIONS))
    parser.add_argument("--layouts", type=names, default=list(LAYOUTS))
    parser.add_argument("--train", type=numbers, default=[])
    parser.add_argument("--evaluate", type=numbers, default=[])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    software = f"PyTorch {torch.__version__}, {arguments.precision}"
    software += ", compiled" if arguments.compile else ", eager"
    if arguments.device == "cpu":
        software += f", {arguments.threads} threads"
    print(software)
    works = [("train", n) for n in arguments.train] + [("evaluate", n) for n in arguments.evaluate]
    works = works or [("train", 1)]
    rows = []
    for network in arguments.networks:
        for activation in arguments.activations:
            for work, steps in works:
                for layout in arguments.layouts:
                    task = (arguments, network, activation, layout, work, steps)
                    with multiprocessing.get_context("spawn").Pool(1) as process:
                        rows.append(process.apply(row, (task,)))
                    print("{network:15} {activation:21} PGD-{steps:<2} {work:8} {layout:13} "
                          "{ms:9.1f} ms {memory_mib:7.0f} MiB".format(**rows[-1]), flush=True)
    if arguments.json:
        report = {"software": software, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

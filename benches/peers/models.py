#!/usr/bin/env python3
"""The forward passes of benches/models.rs in PyTorch: pip install torch torchvision."""

import time

import torch
import torchvision
from torch import nn

torch.set_num_threads(2)


def smooth(module):
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        else:
            smooth(child)


print("| network | images | forward ms |")
print("|---|---:|---:|")
for name in ["resnet50", "efficientnet_b0"]:
    model = getattr(torchvision.models, name)().eval()
    smooth(model)
    for count in [1, 16]:
        images = torch.rand(count, 3, 224, 224)
        times = []
        with torch.inference_mode():
            for _ in range(11 if count == 1 else 4):
                start = time.perf_counter()
                model(images)
                times.append(1e3 * (time.perf_counter() - start))
        print(f"| {name} | {count} | {min(times[1:]):.1f} |")

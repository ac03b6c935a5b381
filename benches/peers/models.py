#!/usr/bin/env python3
"""The forward passes of benches/models.rs in PyTorch: pip install torch torchvision.

    GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=40000000000 \\
        python benches/peers/models.py

The tunables make glibc keep pages, as the allocator of the Rust bench does. The faster of PyTorch's two
layouts counts.
"""

import argparse
import json
import time

import torch
import torchvision
from torch import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--json", help="where to write the numbers")
arguments = parser.parse_args()
torch.set_num_threads(2)
rows = []


def smooth(module):
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        else:
            smooth(child)


print("| network | images | NCHW ms | channels-last ms |")
print("|---|---:|---:|---:|")
for name in ["resnet50", "efficientnet_b0"]:
    model = getattr(torchvision.models, name)().eval()
    smooth(model)
    for count in [1, 16]:
        columns = []
        for layout in [torch.contiguous_format, torch.channels_last]:
            model.to(memory_format=layout)
            images = torch.rand(count, 3, 224, 224).to(memory_format=layout)
            times = []
            with torch.inference_mode():
                for _ in range(21 if count == 1 else 6):
                    start = time.perf_counter()
                    model(images)
                    times.append(1e3 * (time.perf_counter() - start))
            columns.append(min(times[1:]))
        print(f"| {name} | {count} | {columns[0]:.1f} | {columns[1]:.1f} |")
        nchw, channels_last = columns
        rows.append({"network": name, "images": count, "nchw_ms": nchw, "channels_last_ms": channels_last})
if arguments.json:
    with open(arguments.json, "w", encoding="utf-8") as file:
        json.dump({"torch": torch.__version__, "rows": rows}, file, indent=1)

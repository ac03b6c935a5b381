"""AutoAttack standard (Linf) in PyTorch, as the peer of `evaluate --attack autoattack`.

The attacks are torchattacks 3.5.1's APGD, APGDT, FAB and Square, ports of the official code, in the
official order and with the official settings, each on the samples that withstood those before it:

    pip install torch torchattacks safetensors numpy
    python benches/peers/autoattack.py --weights W.safetensors --data test_batch.bin --limit 24

`--data` is a file in CIFAR-10's binary format, `--weights` a ResNet-20 with SiLU and torchvision's
names. Prints seconds and robust samples after each attack, then a line of JSON.
"""

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torchattacks.attacks.apgd import APGD
from torchattacks.attacks.apgdt import APGDT
from torchattacks.attacks.fab import FAB
from torchattacks.attacks.square import Square


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.silu(self.bn1(self.conv1(x)))
        return F.silu(self.bn2(self.conv2(x)) + shortcut)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stage = lambda i, o, s: nn.Sequential(Block(i, o, s), Block(o, o, 1), Block(o, o, 1))
        self.layer1, self.layer2, self.layer3 = stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = F.silu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = ResNet20()
    # Files may lack the counters of batches that training keeps.
    model.load_state_dict(load_file(arguments.weights), strict=False)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    records = np.fromfile(arguments.data, np.uint8).reshape(-1, 3073)[: arguments.limit]
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255)

    common = dict(eps=arguments.eps, norm="Linf", n_restarts=1, seed=arguments.seed, verbose=False)
    attacks = [
        ("apgd-ce", APGD(model, loss="ce", steps=100, **common)),
        ("apgd-t", APGDT(model, n_classes=10, steps=100, **common)),
        ("fab-t", FAB(model, n_classes=10, steps=100, multi_targeted=True, **common)),
        ("square", Square(model, n_queries=5000, resc_schedule=False, **common)),
    ]
    with torch.no_grad():
        robust = model(images).argmax(1) == labels
    print(f"clean: {int(robust.sum())} of {len(labels)}", flush=True)
    total, stages = 0.0, []
    for name, attack in attacks:
        start = time.time()
        open_samples = robust.nonzero().squeeze(1)
        for rows in open_samples.split(arguments.batch):
            adversarial = attack(images[rows], labels[rows]).detach()
            with torch.no_grad():
                robust[rows] &= model(adversarial).argmax(1) == labels[rows]
        seconds = time.time() - start
        total += seconds
        stages.append({"name": name, "seconds": seconds, "robust": int(robust.sum())})
        print(f"{name}: {int(robust.sum())} robust, {seconds:.1f} s", flush=True)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": arguments.threads,
                "n": len(labels),
                "seconds": total,
                "stages": stages,
                "per_sample": robust.int().tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()

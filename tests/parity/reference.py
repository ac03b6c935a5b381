#!/usr/bin/env python3
"""Writes what PyTorch computes with random weights, for tests/parity/main.rs to compare with.

    pip install torch torchvision safetensors
    python tests/parity/reference.py FOLDER
    SAT_PARITY=FOLDER cargo test --release --workspace --test parity

ResNet, ResNeXt and EfficientNet are torchvision's; WideResNet and PreActResNet, which it has not, are
written down here. For each network NAME:

  NAME.pth          weights and running statistics, by torch.save
  NAME.safetensors  images, labels, logits of inference, and the loss of one training pass with the
                    norm of each parameter's gradient (grad.KEY) and the running statistics after it
                    (after.KEY)

The reference is computed in float64 from weights and images that float32 holds exactly. The training
pass has SiLU in the place of ReLU: where rounding moves an input across ReLU's kink, gradients jump, in
PyTorch's own float32 too.
"""

import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """norm, relu, conv, twice; the shortcut convolves what the first relu gives, or the input."""

    def __init__(self, c_in, c_out, stride, wide, of_input=False):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()
        self.of_input = of_input
        self.convolves = stride != 1 or c_in != c_out
        self.name = "convShortcut" if wide else "shortcut"
        if self.convolves:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            setattr(self, self.name, conv if wide else nn.Sequential(conv))

    def forward(self, x):
        out = self.relu(self.bn1(x))
        shortcut = getattr(self, self.name)(x if self.of_input else out) if self.convolves else x
        out = self.conv1(out)
        return self.conv2(self.relu(self.bn2(out))) + shortcut


def stage(c_in, c_out, blocks, stride, wide, of_input=False):
    return nn.Sequential(*(
        Block(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1, wide, of_input)
        for i in range(blocks)))


class PreActResNet18(nn.Module):
    """The shortcuts are RobustBench's PreActBlockV2, or with `of_input` its PreActBlock."""

    def __init__(self, of_input=False, norm=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.layer1 = stage(64, 64, 2, 1, False, of_input)
        self.layer2 = stage(64, 128, 2, 2, False, of_input)
        self.layer3 = stage(128, 256, 2, 2, False, of_input)
        self.layer4 = stage(256, 512, 2, 2, False, of_input)
        if norm:
            self.bn = nn.BatchNorm2d(512)
            self.relu = nn.ReLU()
        self.norm = norm
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = self.relu(self.bn(x)) if self.norm else x
        return self.linear(x.mean((2, 3)))


class WideStage(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.layer = stage(*args, True)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """Depth 6 * blocks + 4."""

    def __init__(self, blocks, widen):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(16, 16 * widen, blocks, 1)
        self.block2 = WideStage(16 * widen, 32 * widen, blocks, 2)
        self.block3 = WideStage(32 * widen, 64 * widen, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64 * widen, 10)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.relu(self.bn1(x)).mean((2, 3)))


MODELS = {
    # name: (network, side of the images)
    "resnet18": (lambda: torchvision.models.resnet18(), 64),
    "resnet50": (lambda: torchvision.models.resnet50(), 64),
    "resnext50_32x4d": (lambda: torchvision.models.resnext50_32x4d(), 64),
    "efficientnet_b0": (
        lambda: torchvision.models.efficientnet_b0(stochastic_depth_prob=0.0, dropout=0.0), 65),
    "preact_resnet18": (PreActResNet18, 32),
    "preact_resnet18_input": (lambda: PreActResNet18(of_input=True), 32),
    "preact_resnet18_norm": (lambda: PreActResNet18(norm=True), 32),
    "wide_resnet16_4": (lambda: WideResNet(2, 4), 32),
}


def randomize(model):
    """Statistics and gains as after training, where a missing or mistaken one shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, 0, 0.2)


def smooth(module):
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        else:
            smooth(child)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, (build, side)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = build()
        randomize(model)
        torch.save(model.state_dict(), folder / f"{name}.pth")
        images = torch.randn(4, 3, side, side)
        model.double()

        model.eval()
        with torch.no_grad():
            logits = model(images.double())
        labels = torch.arange(4) * 2
        smooth(model)
        model.train()
        loss = F.cross_entropy(model(images.double()), labels)
        loss.backward()

        out = {"images": images, "labels": labels, "logits": logits, "loss": loss.detach()}
        for key, parameter in model.named_parameters():
            out[f"grad.{key}"] = parameter.grad.norm()
        for key, buffer in model.named_buffers():
            if "running" in key:
                out[f"after.{key}"] = buffer
        out = {key: value.float().contiguous() for key, value in out.items()}
        save_file(out, folder / f"{name}.safetensors")
        print(f"{name}: loss {loss.item():.6f}, largest logit {logits.abs().max().item():.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

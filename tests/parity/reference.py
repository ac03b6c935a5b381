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


class DeepMindBlock(nn.Module):
    """norm, relu, conv, twice, with names by a list; stride 2 is padded right and below."""

    def __init__(self, c_in, c_out, stride, convs, of_input):
        super().__init__()
        self.stride, self.convs, self.of_input = stride, convs, of_input
        self.batchnorm_0 = nn.BatchNorm2d(c_in)
        self.batchnorm_1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        setattr(self, convs[0], nn.Conv2d(c_in, c_out, 3, stride, bias=False))
        setattr(self, convs[1], nn.Conv2d(c_out, c_out, 3, padding=1, bias=False))
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 3 if of_input else 1, stride, bias=False)

    def pad(self, x):
        return F.pad(x, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1))

    def forward(self, x):
        out = self.relu(self.batchnorm_0(x))
        if hasattr(self, "shortcut"):
            x = self.shortcut(self.pad(x) if self.of_input else out)
        out = getattr(self, self.convs[0])(self.pad(out))
        return getattr(self, self.convs[1])(self.relu(self.batchnorm_1(out))) + x


class DeepMind(nn.Module):
    """What DMWideResNet and DMPreActResNet have in common; their stages and first convolution differ."""

    def __init__(self, channels):
        super().__init__()
        for name, values in [("mean", [0.4914, 0.4822, 0.4465]), ("std", [0.2471, 0.2435, 0.2616])]:
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.batchnorm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.logits = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.stages((x - self.mean) / self.std)
        return self.logits(self.relu(self.batchnorm(x)).mean((2, 3)))


def deep_mind_stage(c_in, c_out, blocks, stride, convs, of_input):
    return [DeepMindBlock(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1, convs, of_input)
            for i in range(blocks)]


class DeepMindWide(DeepMind):
    def __init__(self, blocks, widen):
        super().__init__(64 * widen)
        self.init_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential()
        for c_in, c_out, stride in [(16, 16 * widen, 1), (16 * widen, 32 * widen, 2),
                                    (32 * widen, 64 * widen, 2)]:
            group = nn.Module()
            group.block = nn.Sequential(
                *deep_mind_stage(c_in, c_out, blocks, stride, ("conv_0", "conv_1"), False))
            group.forward = group.block.forward
            self.layer.append(group)

    def stages(self, x):
        return self.layer(self.init_conv(x))


class DeepMindPreAct(DeepMind):
    def __init__(self):
        super().__init__(512)
        self.conv_2d = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        for i, (c_in, c_out, stride) in enumerate(
                [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]):
            convs = ("conv_2d_1", "conv_2d_2")
            stage = deep_mind_stage(c_in, c_out, 2, stride, convs, True)
            setattr(self, f"layer_{i}", nn.Sequential(*stage))

    def stages(self, x):
        return self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))


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
    "dm_wide_resnet16_4": (lambda: DeepMindWide(2, 4), 32),
    "dm_preact_resnet18": (DeepMindPreAct, 32),
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

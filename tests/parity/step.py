"""Known answers for tests/parity_step.rs: adversarial training steps in PyTorch.

python tests/parity/step.py tests/parity/step.safetensors

A small residual network with torchvision's key names and SiLU takes three steps: PGD-3 from the clean
images in evaluation mode, then label-smoothed cross-entropy in training mode, the gradient's norm
clipped, and SGD with Nesterov momentum, whose weight decay spares parameters of one axis. Written for
each step: images, labels, adversarial images, loss, clipped gradients, and all weights and statistics
after it; and under `bf16` loss and clipped gradients of the same weights and adversarial images by autocast.
"""

import copy
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

EPS, STEP_SIZE, ATTACK_STEPS = 8 / 255, 3 / 255, 3
LR, MOMENTUM, DECAY, SMOOTHING, CLIP = 0.1, 0.9, 5e-2, 0.1, 1.0


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.silu(self.bn1(self.conv1(x)))
        return F.silu(self.bn2(self.conv2(x)) + shortcut)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.silu(self.bn1(self.conv1(x * 2 - 1)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def attack(model, images, labels):
    model.eval()
    adversarial = images.clone()
    for _ in range(ATTACK_STEPS):
        adversarial.requires_grad_(True)
        loss = F.cross_entropy(model(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + STEP_SIZE * gradient.sign()
        adversarial = torch.clamp(adversarial, images - EPS, images + EPS).clamp(0, 1)
    model.train()
    return adversarial


def autocast(model, adversarial, labels):
    """Loss and gradients in mixed precision, without an update."""
    model = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(adversarial)
    assert logits.dtype == torch.bfloat16
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    gradients = {f"gradient.{name}": p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach().reshape(1), **gradients}


def main(path):
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    # `num_batches_tracked` has no counterpart in Burn.
    state = lambda: {k: v for k, v in model.state_dict().items() if "tracked" not in k}
    out = {f"start.{name}": value.clone() for name, value in state().items()}
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, nesterov=True)
    for step in range(3):
        images = torch.rand(8, 3, 8, 8)
        labels = torch.randint(0, 5, (8,))
        adversarial = attack(model, images, labels)
        for name, value in autocast(model, adversarial, labels).items():
            out[f"{step}.bf16.{name}"] = value
        loss = F.cross_entropy(model(adversarial), labels, label_smoothing=SMOOTHING)
        sgd.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        print(f"step {step}: loss {loss.item():.6f}, gradient norm {norm.item():.4f}")
        out[f"{step}.images"] = images
        out[f"{step}.labels"] = labels
        out[f"{step}.adversarial"] = adversarial
        out[f"{step}.loss"] = loss.detach().reshape(1)
        for name, parameter in model.named_parameters():
            out[f"{step}.gradient.{name}"] = parameter.grad.clone()
        sgd.step()
        for name, value in state().items():
            out[f"{step}.after.{name}"] = value.clone()
    save_file(out, path)


main(sys.argv[1])

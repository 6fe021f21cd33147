# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Data augmentation of whole batches, on the device that holds them.

Every image of a batch gets parameters of its own, as with one call of torchvision's transforms an
image, but without a loop over images. The plain functions (:func:`crop`, :func:`flip`,
:func:`rotate`, :func:`erase`) take the parameters; the dataclasses beside them draw the parameters
and call the functions. An :class:`Augmentation` runs several in order. Crops and flips work on
bytes as well as on floats, rotations and normalisation on floats only, so the cheap order is
crop, flip, :class:`ToFloat`, rotate, normalise, erase.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Transform = Callable[[Tensor, "torch.Generator | None"], Tensor]


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """
    Pads every side with zeros and cuts out windows of the images' own size.

    :param Tensor images: shape (n, C, H, W), of any dtype.
    :param Tensor top: first row of each window in the padded image, integers of shape (n,) in
        [0, 2 padding]; ``padding`` is the image itself.
    :param Tensor left: first column, likewise.
    :param int padding: pixels on every side.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, rows, columns, H, W): a view
    return windows[torch.arange(n, device=images.device), :, top, left]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """
    Mirrors images left to right.

    :param Tensor images: shape (n, C, H, W), of any dtype.
    :param Tensor which: booleans of shape (n,), True for an image to mirror.
    """
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """
    Turns images counter-clockwise about their centres, with bilinear interpolation and zeros
    outside; torchvision's ``rotate`` with ``InterpolationMode.BILINEAR``.

    :param Tensor images: floats of shape (n, C, H, W).
    :param Tensor degrees: shape (n,).
    """
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # affine_grid counts in half widths and half heights, so an oblong image needs its aspect.
    theta = torch.stack(
        [
            torch.stack([cos, -sin * (height / width), zero], -1),
            torch.stack([sin * (width / height), cos, zero], -1),
        ],
        -2,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """
    Sets a rectangle of every image to zero.

    :param Tensor images: shape (n, C, H, W), of any dtype.
    :param Tensor boxes: top, left, height and width, shape (n, 4); height 0 erases nothing.
    """
    top, left, height, width = boxes[:, :, None].unbind(1)
    row = torch.arange(images.shape[-2], device=images.device)
    column = torch.arange(images.shape[-1], device=images.device)
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


@dataclass(frozen=True)
class RandomCrop:
    """
    :func:`crop` at a uniform offset, torchvision's ``RandomCrop(size, padding)`` where the size is
    the image's own.

    :param int padding: pixels on every side.
    """

    padding: int = 4

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A crop of each image, shape and dtype kept."""
        offsets = torch.randint(
            2 * self.padding + 1, (2, len(images)), generator=generator, device=images.device
        )
        return crop(images, offsets[0], offsets[1], self.padding)


@dataclass(frozen=True)
class RandomFlip:
    """
    :func:`flip` with some probability, torchvision's ``RandomHorizontalFlip``.

    :param float probability: of a mirrored image.
    """

    probability: float = 0.5

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Each image or its mirror image."""
        uniform = torch.rand(len(images), generator=generator, device=images.device)
        return flip(images, uniform < self.probability)


@dataclass(frozen=True)
class RandomRotation:
    """
    :func:`rotate` by a uniform angle, torchvision's ``RandomRotation`` with bilinear interpolation.

    :param float degrees: the largest angle, to either side.
    """

    degrees: float = 15.0

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Each image, turned."""
        uniform = torch.rand(len(images), generator=generator, device=images.device)
        return rotate(images, (2.0 * uniform - 1.0) * self.degrees)


@dataclass(frozen=True)
class RandomErasing:
    """
    :func:`erase` of a rectangle with some probability, torchvision's ``RandomErasing``: the area is
    uniform, the aspect ratio log-uniform, and of ten tries the first that fits inside is taken.

    :param float probability: of an erasure.
    :param scale: smallest and largest area, as shares of the image's.
    :param ratio: smallest and largest height over width.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    tries: int = 10

    def boxes(self, shape: torch.Size, generator: torch.Generator | None, device: str) -> Tensor:
        """
        Random rectangles for a batch.

        :param shape: of the images, (n, C, H, W).
        :returns: as :func:`erase` takes them, shape (n, 4).
        """
        n, _, rows, columns = shape
        uniform = torch.rand(
            (3, n, self.tries), generator=generator, device=device, dtype=torch.float64
        )
        area = rows * columns * (self.scale[0] + uniform[0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + uniform[1] * (high - low))
        heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (heights < rows) & (widths < columns)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)  # 0 where none fits
        height, width = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
        place = uniform[2, :, :2]
        top = (place[:, 0] * (rows - height + 1)).floor()
        left = (place[:, 1] * (columns - width + 1)).floor()
        chosen = uniform[2, :, 2] < self.probability
        height = torch.where(chosen & fits.any(1), height, 0.0)
        return torch.stack([top, left, height, width], 1)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Each image, perhaps with a rectangle of zeros."""
        return erase(images, self.boxes(images.shape, generator, images.device))


@dataclass(frozen=True)
class ToFloat:
    """Bytes in 0 to 255 to floats in 0 to 1."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images, as float32."""
        return images.to(torch.float32).div_(255.0)


@dataclass(frozen=True)
class Normalise:
    """
    Subtracts a mean from every channel and divides by a standard deviation.

    :param mean: one number a channel.
    :param std: one number a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images, normalised."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images - mean) / std


@dataclass(frozen=True)
class Augmentation:
    """
    Transforms in order.

    :param transforms: each takes images and a generator.
    """

    transforms: tuple[Transform, ...]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """
        :param Tensor images: shape (n, C, H, W).
        :param torch.Generator generator: on the images' device; None for torch's own.
        """
        for transform in self.transforms:
            images = transform(images, generator)
        return images


PLAIN = Augmentation((ToFloat(),))
"""Floats in [0, 1], and nothing else: MNIST and Fashion-MNIST as they are, and for prediction."""

DIGITS = Augmentation((RandomCrop(4), ToFloat(), RandomRotation(15.0)))
"""DA-MNIST: crop with 4 pixels of padding, rotation up to 15 degrees."""

CLOTHES = Augmentation((RandomCrop(4), RandomFlip(), ToFloat(), RandomErasing(0.5)))
"""DA-FMNIST: crop with 4 pixels of padding, flip, random erasing of every other image."""

CIFAR_PLAIN = Augmentation(
    (ToFloat(), Normalise((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
)
"""CIFAR-10, each channel normalised."""

CIFAR = Augmentation(
    (RandomCrop(4), RandomFlip(), *CIFAR_PLAIN.transforms, RandomErasing(0.5)),
)
"""CIFAR-10: crop with 4 pixels of padding, flip, normalise, random erasing of every other image."""

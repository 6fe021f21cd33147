# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Images corrupted in five ways that training never shows, to see what a probability is worth."""

from __future__ import annotations

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as v2f

from .data import Images


def _noise(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + 20.0 * noise).round().clamp(0.0, 255.0).to(torch.uint8)


def _jpeg(images: Tensor) -> Tensor:
    found = []
    for image in images.cpu():
        file = BytesIO()
        v2f.to_pil_image(image).save(file, "jpeg", quality=20)
        found.append(v2f.pil_to_tensor(Image.open(file)))
    return torch.stack(found).to(images.device)


CORRUPTIONS = {
    "noise": _noise,
    "blur": lambda images: v2f.gaussian_blur(images, [5, 5], [1.0, 1.0]),
    "contrast": lambda images: v2f.adjust_contrast(images, 0.3),
    "brightness": lambda images: v2f.adjust_brightness(images, 1.8),
    "jpeg": _jpeg,
}
"""
Normal noise of standard deviation 20 of 255, a Gaussian blur of one pixel, contrast times 0.3,
brightness times 1.8, and JPEG of quality 20. Each maps bytes of shape (n, C, H, W) to such.
"""


def corrupt(data: Images, count: int) -> dict[str, Images]:
    """
    The first images, corrupted in every way.

    :param Images data: of which to take the first.
    :param int count: how many.
    :returns: by the corruption's name.
    """
    first = data.take(slice(count))
    return {
        name: Images(change(first.images), first.labels) for name, change in CORRUPTIONS.items()
    }

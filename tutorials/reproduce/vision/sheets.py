# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
CIFAR-10 in a third of its size: JPEG sheets of 100 by 100 images each, for machines that little
can be carried to. A file an image would be half headers. Images are blocks of whole 16 by 16
pixels, by which JPEG codes, so that no image shows in its neighbour.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .data import Images

SIDE, PIXELS = 100, 32
FOLDER = "cifar10-sheets"


def pack(parts: dict[str, Images], folder: Path, quality: int = 95) -> int:
    """
    Writes sheets of images and a file of labels.

    :param parts: ``train`` and ``test``.
    :param folder: which is made.
    :param int quality: of JPEG, up to 100.
    :returns: the bytes written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in parts.items():
        np.save(folder / f"{part}.npy", labels.numpy().astype(np.uint8))
        for number, some in enumerate(images.split(SIDE * SIDE)):
            sheet = torch.zeros((SIDE * SIDE, *some.shape[1:]), dtype=torch.uint8)
            sheet[: len(some)] = some
            grid = sheet.reshape(SIDE, SIDE, 3, PIXELS, PIXELS).permute(0, 3, 1, 4, 2)
            pixels = grid.reshape(SIDE * PIXELS, SIDE * PIXELS, 3).numpy()
            Image.fromarray(pixels).save(folder / f"{part}-{number}.jpg", quality=quality)
    return sum(file.stat().st_size for file in folder.iterdir())


def unpack(folder: Path, part: str) -> Images:
    """
    Reads what :func:`pack` wrote.

    :param folder: of the sheets.
    :param str part: ``"train"`` or ``"test"``.
    """
    labels = torch.from_numpy(np.load(folder / f"{part}.npy").astype(np.int64))
    sheets = []
    for number in range(-(-len(labels) // SIDE**2)):
        with Image.open(folder / f"{part}-{number}.jpg") as file:
            pixels = torch.from_numpy(np.array(file))
        grid = pixels.reshape(SIDE, PIXELS, SIDE, PIXELS, 3).permute(0, 2, 4, 1, 3)
        sheets.append(grid.reshape(SIDE * SIDE, 3, PIXELS, PIXELS))
    return Images(torch.cat(sheets)[: len(labels)].contiguous(), labels)

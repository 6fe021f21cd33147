# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Image data in memory, and loaders that hand out whole augmented batches.

:func:`load` reads a data set into bytes, :func:`split` sets validation images aside, and
:func:`batches` makes a ``DataLoader`` of images on a device. Its data set answers ``__getitems__``:
it gets all indices of a batch at once and returns the batch, transformed where it lies, so there is
no loop over images and no collation.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from tqdm import tqdm

from .augment import PLAIN, Augmentation

CLASSES = 10
SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "cifar10": (3, 32, 32)}


class Images(NamedTuple):
    """
    Images with their labels.

    :param Tensor images: bytes of shape (n, C, H, W).
    :param Tensor labels: integers of shape (n,).
    """

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor | slice) -> Images:
        """Some of them."""
        return Images(self.images[indices], self.labels[indices])

    def to(self, device: str | torch.device) -> Images:
        """All of them on a device."""
        return Images(self.images.to(device), self.labels.to(device))


def load(
    name: str, data_dir: Path | None, *, download: bool = False, cache: Path | None = None
) -> tuple[Images, Images]:
    """
    The training and the test images.

    :param str name: ``"mnist"``, ``"fashion"`` or ``"cifar10"``.
    :param data_dir: the root that torchvision's data sets take. CIFAR-10 may also lie there as
        folders of image files, ``cifar10-jpeg/{train,test}/CLASS/*`` or ``{train,test}/CLASS/*``,
        or as the sheets of ``pack_cifar.py``. None makes up a few hundred images, to see that a
        program runs.
    :param bool download: fetch what is missing into ``data_dir``.
    :param cache: a folder for the bytes of decoded image files, so that they are decoded once.
    :raises FileNotFoundError: if the data are not there.
    """
    if data_dir is None:
        return made_up(SHAPES[name])
    if name == "cifar10":
        return _cifar10(data_dir, download, cache)
    kind = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    parts = []
    for train in (True, False):
        try:
            data = kind(str(data_dir), train=train, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"there is no {kind.__name__} in {data_dir}, expected the files in "
                f"{data_dir / kind.__name__ / 'raw'}; give --download to fetch them"
            ) from error
        parts.append(Images(data.data.unsqueeze(1), data.targets))
    return parts[0], parts[1]


def _cifar10(data_dir: Path, download: bool, cache: Path | None) -> tuple[Images, Images]:
    from .sheets import FOLDER, unpack  # which stands on this module

    if (data_dir / FOLDER).is_dir():
        return unpack(data_dir / FOLDER, "train"), unpack(data_dir / FOLDER, "test")
    for root in (data_dir / "cifar10-jpeg", data_dir):
        if (root / "train").is_dir() and (root / "test").is_dir():
            train, test = (_image_folder(root / part, cache) for part in ("train", "test"))
            return train, test
    parts = []
    for train in (True, False):
        try:
            data = datasets.CIFAR10(str(data_dir), train=train, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"there is no CIFAR-10 in {data_dir}, expected cifar-10-batches-py/ or folders "
                "train/CLASS/ and test/CLASS/ of image files; give --download to fetch it"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        parts.append(Images(images, torch.tensor(data.targets)))
    return parts[0], parts[1]


def _image_folder(folder: Path, cache: Path | None) -> Images:
    """Decodes every image file of an ``ImageFolder``, or reads what an earlier run decoded."""
    listing = datasets.ImageFolder(str(folder))
    stamp = {"folder": str(folder.resolve()), "files": len(listing.samples)}
    stored = None if cache is None else cache / f"{folder.parent.name}-{folder.name}.pt"
    if stored is not None and stored.exists():
        content = torch.load(stored, weights_only=True)
        if {key: content[key] for key in stamp} == stamp:
            return Images(content["images"], content["labels"])
    files = tqdm(listing.samples, desc=f"decoding {folder.name}", unit="image")
    pixels = np.stack([np.asarray(listing.loader(path)) for path, _ in files])  # (n, H, W, C)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in listing.samples])
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}.part")
        torch.save({"images": images, "labels": labels, **stamp}, part)
        part.replace(stored)  # a run that stops in mid-write leaves no half a file
    return Images(images, labels)


def made_up(
    shape: tuple[int, int, int], train: int = 200, test: int = 100, seed: int = 0
) -> tuple[Images, Images]:
    """
    Images that anyone can make: a blurred pattern for every class, and noise on top.

    :param shape: channels, height, width.
    :param int train: number of training images.
    :param int test: number of test images.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand((CLASSES, channels, 4, 4), generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    parts = []
    for n in (train, test):
        labels = torch.arange(n) % CLASSES
        noise = 0.1 * torch.randn((n, *shape), generator=generator)
        images = (255 * (patterns[labels] + noise)).clamp(0, 255).to(torch.uint8)
        parts.append(Images(images, labels))
    return parts[0], parts[1]


def split(data: Images, validation: int, seed: int = 0) -> tuple[Images, Images]:
    """
    Sets images aside for validation, at random.

    :param Images data: the training images.
    :param int validation: how many.
    :param int seed: of the choice; the same seed, the same images.
    :returns: the rest, and the images set aside.
    :raises ValueError: if nothing would be left.
    """
    n = len(data.labels)
    if not 0 < validation < n:
        raise ValueError(f"validation={validation}, expected at least 1 and less than {n} images")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return data.take(order[validation:]), data.take(order[:validation])


class BatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """
    Images of which a loader fetches a whole batch at once.

    :param Images data: bytes and labels; batches come on their device.
    :param Augmentation augment: from bytes to what the network takes.
    :param int seed: of the augmentation; None for torch's global generator. The random numbers of
        a batch follow from the seed and its indices, so that a run that is resumed has the same.
    """

    def __init__(
        self, data: Images, augment: Augmentation = PLAIN, seed: int | None = None
    ) -> None:
        self.data = data
        self.augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image, transformed, and its label."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch: transformed images, shape (n, C, H, W), and labels, shape (n,)."""
        images, labels = self.data.take(torch.as_tensor(indices, device=self.data.images.device))
        return self.augment(images, self.generator(indices)), labels

    def generator(self, indices: Sequence[int]) -> torch.Generator | None:
        """Return the random numbers of a batch."""
        if self._seed is None:
            return None
        place = zlib.crc32(np.asarray(indices, np.int64).tobytes())
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1, np.uint64)[0])
        return torch.Generator(self.data.images.device).manual_seed(seed)


def whole(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The collation of a :class:`BatchDataset`: there is nothing left to do."""
    return batch


def batches(
    data: Images,
    size: int,
    augment: Augmentation = PLAIN,
    *,
    train: bool = False,
    seed: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """
    A loader of batches on the device that holds the images.

    :param Images data: where the batches come from.
    :param int size: images a batch, cut to the number that there is.
    :param Augmentation augment: from bytes to what the network takes.
    :param bool train: whether images come in a new order every epoch, without the last short batch.
    :param int seed: of the order and of the augmentation.
    """
    # Two streams of numbers, and neither that of a sampler that has the same seed.
    order, change = (int(n) for n in np.random.SeedSequence(seed).generate_state(2, np.uint32))
    return DataLoader(
        BatchDataset(data, augment, change),
        batch_size=min(size, len(data.labels)),
        shuffle=train,
        drop_last=train,
        collate_fn=whole,
        generator=torch.Generator().manual_seed(order),
    )

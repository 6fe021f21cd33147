# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The image tutorials: data, augmentation, networks, attacks, and whole scripts at smoke size."""

from __future__ import annotations

import fnmatch
import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tutorial_runs import read_rows, require_packages, run_script

require_packages("h5netcdf", "matplotlib", "pandas", "torchmetrics", "torchvision", "tqdm")

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as v2f  # noqa: E402

augment = importlib.import_module("vision.augment")
corruptions = importlib.import_module("vision.corruptions")
data = importlib.import_module("vision.data")
networks = importlib.import_module("vision.networks")
sheets = importlib.import_module("vision.sheets")
training = importlib.import_module("vision.training")
attack = importlib.import_module("mnist_networks.attack")
protocol = importlib.import_module("mnist_networks.protocol")
report = importlib.import_module("mnist_networks.report")
rows = importlib.import_module("mnist_networks.training")


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- augmentation: torchvision's transforms, an image at a time


def test_a_crop_in_the_middle_is_the_image() -> None:
    images = random_images(3, 2, 8, 6)
    middle = torch.full((3,), 4)
    assert torch.equal(augment.crop(images, middle, middle, 4), images)


def test_every_image_has_its_own_crop() -> None:
    images = (255 * random_images(4, 1, 8, 6)).to(torch.uint8)
    top, left = torch.tensor([0, 3, 8, 1]), torch.tensor([8, 0, 2, 4])
    found = augment.crop(images, top, left, 4)
    for image, t, x, got in zip(images, top.tolist(), left.tolist(), found, strict=True):
        padded = v2f.pad(image, [4])
        assert torch.equal(got, v2f.crop(padded, t, x, 8, 6))


def test_flips_mirror_the_chosen_images() -> None:
    images = random_images(2, 3, 4, 5)
    found = augment.flip(images, torch.tensor([True, False]))
    assert torch.equal(found[0], v2f.horizontal_flip(images[0]))
    assert torch.equal(found[1], images[1])


def test_rotations_are_torchvisions() -> None:
    images = random_images(3, 1, 9, 7)
    degrees = torch.tensor([-15.0, 0.0, 40.0])
    found = augment.rotate(images, degrees)
    for image, angle, got in zip(images, degrees.tolist(), found, strict=True):
        wanted = v2f.rotate(image, angle, interpolation=v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0.0)  # float32, pixels of order 1


def test_an_erasure_is_the_box_and_nothing_else() -> None:
    images = random_images(2, 2, 6, 5) + 0.1  # nowhere zero
    found = augment.erase(images, torch.tensor([[1, 2, 3, 2], [0, 0, 0, 4]]))
    assert torch.equal(found[0], v2f.erase(images[0], 1, 2, 3, 2, torch.zeros(())))
    assert torch.equal(found[1], images[1])  # height 0


def test_erasures_have_torchvisions_law() -> None:
    n, shape = 4000, (1, 28, 28)
    boxes = augment.RandomErasing(0.5).boxes(
        torch.Size((n, *shape)), torch.Generator().manual_seed(0), "cpu"
    )
    top, left, height, width = boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 28) & (left + width <= 28)).all())
    done = height > 0
    # A share of n trials of probability 1/2 has standard error 1 / (2 sqrt(n)).
    assert abs(float(done.double().mean()) - 0.5) < 4.5 * 0.5 / n**0.5
    torch.manual_seed(1)
    reference = v2.RandomErasing(1.0)
    wanted = [reference.make_params([torch.zeros(shape)]) for _ in range(int(done.sum()))]
    for name, ours in (("h", height[done]), ("w", width[done]), ("i", top[done])):
        theirs = torch.tensor([float(box[name]) for box in wanted])
        error = ((ours.var() + theirs.var()) / len(theirs)) ** 0.5
        assert abs(float(ours.mean() - theirs.mean())) < 4.5 * float(error), name


def test_rotations_and_crops_are_uniform() -> None:
    n = 3000
    # A lone bright pixel in the middle of 9 x 9 shows the offset of its crop.
    images = torch.zeros((n, 1, 9, 9))
    images[:, :, 4, 4] = 1.0
    found = augment.RandomCrop(4)(images, torch.Generator().manual_seed(0))
    row = found.amax((1, 3)).argmax(1)
    counts = torch.bincount(row, minlength=9).double()
    assert bool(((counts / n - 1 / 9).abs() < 4.5 * (8 / 81 / n) ** 0.5).all())


@pytest.mark.parametrize("name", ["DIGITS", "CLOTHES", "PLAIN"])
def test_an_augmentation_depends_on_its_generator_alone(name: str) -> None:
    images = (255 * random_images(5, 1, 28, 28)).to(torch.uint8)
    transform = getattr(augment, name)
    first = transform(images, torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    assert torch.equal(first, transform(images, torch.Generator().manual_seed(3)))
    assert first.dtype == torch.float32 and first.shape == images.shape
    assert float(first.min()) >= 0.0 and float(first.max()) <= 1.0
    if name != "PLAIN":
        assert not torch.equal(first, transform(images, torch.Generator().manual_seed(4)))


# -- data


def test_a_loader_fetches_whole_batches() -> None:
    train, _ = data.made_up((1, 28, 28), train=50)
    loader = data.batches(train, 20, train=True, seed=1)
    epoch = list(loader)
    assert [len(labels) for _, labels in epoch] == [20, 20]  # the rest waits
    images, labels = epoch[0]
    place = [int((train.images == (255 * x).round()).flatten(1).all(1).nonzero()) for x in images]
    assert torch.equal(train.labels[place], labels)
    in_order = torch.cat([labels for _, labels in data.batches(train, 20)])
    assert torch.equal(in_order, train.labels)


def test_a_seeds_order_augmentation_and_noise_are_different_random_numbers() -> None:
    class Numbers:
        def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
            drawn.extend(uniform(len(images), generator))
            return images.float()

    def uniform(n: int, generator: torch.Generator) -> list[float]:
        # Of 53 random bits each; two of float32's 24 would be equal by chance.
        return torch.rand(n, generator=generator, dtype=torch.float64).tolist()

    def from_the_start(seed: int) -> list[float]:
        return uniform(10_000, torch.Generator().manual_seed(seed))

    drawn: list[float] = []
    train, _ = data.made_up((1, 8, 8))
    loader = data.batches(train, 20, Numbers(), train=True, seed=5)
    list(loader)
    assert len(drawn) == len(train.labels)
    noise, order = from_the_start(5), from_the_start(loader.generator.initial_seed())
    assert not set(drawn) & set(noise)
    assert not set(order) & set(noise)
    assert not set(order) & set(drawn)


def test_a_batchs_augmentation_follows_from_the_seed_and_its_images() -> None:
    """So a run that is resumed has the batches of one that was not stopped."""
    train, _ = data.made_up((1, 28, 28), train=60)
    epochs = [list(data.batches(train, 20, augment.DIGITS, train=True, seed=3)) for _ in range(2)]
    for (first, _), (second, _) in zip(*epochs, strict=True):
        assert torch.equal(first, second)
    dataset = data.batches(train, 20, augment.DIGITS, seed=3).dataset
    once, _ = dataset.__getitems__([1, 2, 3])
    assert torch.equal(once, dataset.__getitems__([1, 2, 3])[0])
    numbers = [float(torch.rand(1, generator=dataset.generator([i]))) for i in range(50)]
    assert len(set(numbers)) == 50
    other = data.batches(train, 20, augment.DIGITS, seed=4).dataset
    assert not torch.equal(once, other.__getitems__([1, 2, 3])[0])


def test_the_validation_images_are_the_same_for_the_same_seed() -> None:
    train, _ = data.made_up((1, 28, 28), train=50)
    rest, validation = data.split(train, 10)
    assert (len(rest.labels), len(validation.labels)) == (40, 10)
    assert torch.equal(validation.images, data.split(train, 10)[1].images)
    together = torch.cat([rest.images, validation.images]).flatten(1)
    assert torch.equal(together.double().sum(0), train.images.flatten(1).double().sum(0))
    with pytest.raises(ValueError, match="validation=50, expected at least 1 and less than 50"):
        data.split(train, 50)


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    for name in ("mnist", "cifar10"):
        with pytest.raises(FileNotFoundError, match="give --download"):
            data.load(name, tmp_path)


def test_image_files_are_decoded_once(tmp_path: Path) -> None:
    image = (255 * random_images(3, 32, 32)).to(torch.uint8)
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "cifar10-jpeg" / part / kind
            folder.mkdir(parents=True)
            v2f.to_pil_image(image).save(folder / "0.png")
    cache = tmp_path / "cache"
    train, test = data.load("cifar10", tmp_path, cache=cache)
    assert torch.equal(train.images, torch.stack([image, image]))  # PNG is lossless
    assert train.labels.tolist() == [0, 1]
    for file in (tmp_path / "cifar10-jpeg").glob("*/*/*.png"):
        file.write_bytes(b"no image any more")
    again, _ = data.load("cifar10", tmp_path, cache=cache)
    assert torch.equal(again.images, train.images)


def test_packed_images_keep_their_places_and_labels(tmp_path: Path) -> None:
    """One colour an image: JPEG keeps it, unless a neighbour shows."""
    colours = (255 * random_images(130, 3, 1, 1)).to(torch.uint8)
    images = data.Images(colours.expand(-1, -1, 32, 32).contiguous(), torch.arange(130) % 10)
    parts = {"train": images, "test": images.take(slice(30, 60))}
    size = sheets.pack(parts, tmp_path / sheets.FOLDER)
    assert size == sum(file.stat().st_size for file in (tmp_path / sheets.FOLDER).iterdir())
    for found, wanted in zip(data.load("cifar10", tmp_path), parts.values(), strict=True):
        assert torch.equal(found.labels, wanted.labels)
        assert found.images.shape == wanted.images.shape
        # An image's own pixels alone: the two chroma planes are halved, so its edge blends.
        inside = (found.images.int() - wanted.images.int())[:, :, 1:-1, 1:-1]
        assert int(inside.abs().max()) <= 4


def test_corrupted_images_are_the_first_ones_in_five_other_ways() -> None:
    images, _ = data.made_up((3, 32, 32), train=12)
    found = corruptions.corrupt(images, 8)
    assert len(found) == 5
    for name, (changed, labels) in found.items():
        assert changed.dtype == torch.uint8 and torch.equal(labels, images.labels[:8]), name
        assert changed.shape == (8, 3, 32, 32) and not torch.equal(changed, images.images[:8]), name
    again = corruptions.corrupt(images, 8)
    assert all(torch.equal(found[name].images, again[name].images) for name in found)


# -- networks


@pytest.mark.parametrize(
    ("make", "shape", "parameters"),
    [
        ("Net1", (1, 28, 28), 681_506),
        ("Net2", (1, 28, 28), 493_772),
        ("resnet20", (3, 32, 32), 272_474),
    ],
)
def test_networks_have_the_papers_sizes(make: str, shape: tuple[int, ...], parameters: int) -> None:
    net = getattr(networks, make)()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert training.logits_of(net, random_images(2, *shape), "bf16").shape == (2, 10)
    assert training.logits_of(net, random_images(2, *shape), "bf16").dtype == torch.float32


def test_the_pattern_finds_the_resnets_sparse_layers() -> None:
    layers = {
        name: module.weight.numel()
        for name, module in networks.resnet20().named_modules()
        if isinstance(module, nn.Conv2d) and fnmatch.fnmatch(name, "*.conv*")
    }
    assert len(layers) == 18 and sum(layers.values()) == 267_264
    assert "conv1" not in layers  # the stem
    assert not any("shortcut" in name for name in layers)


def test_the_likelihood_counts_every_training_image_once() -> None:
    pyro = importlib.import_module("pyro")
    net = networks.Net1()
    x, y = random_images(4, 1, 28, 28), torch.tensor([1, 2, 3, 4])
    trace = pyro.poutine.trace(training.Classification(net, 100)).get_trace(x, y)
    wanted = -100 * F.cross_entropy(net(x), y)
    torch.testing.assert_close(trace.log_prob_sum(), wanted)


# -- adversarial images


def test_the_attack_moves_every_pixel_against_the_prediction() -> None:
    """Of two linear networks, whose average has a gradient that is written down by hand."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double() for _ in range(2)]
    x = torch.rand((1, 1, 3, 3), dtype=torch.float64)
    p = torch.stack([net(x).softmax(-1)[0] for net in nets])
    c = int(p.mean(0).argmax())
    by_hand = torch.zeros(9, dtype=torch.float64)
    for probs, net in zip(p, nets, strict=True):  # grad p_c = p_c (w_c - sum_j p_j w_j)
        weight = net[1].weight
        by_hand += probs[c] * (weight[c] - probs @ weight)
    found = attack.direction(nets, x)
    assert torch.equal(found.flatten(), by_hand.sign())
    moved = attack.attacked(x, found, 0.3)
    assert torch.equal(moved, (x - 0.3 * found).clamp(0.0, 1.0))
    with torch.no_grad():
        before, after = attack.log_average(nets, x), attack.log_average(nets, moved)
    assert float(after[0, c]) < float(before[0, c])


def test_the_attack_sees_a_sure_network() -> None:
    """Where p rounds to 1 its gradient is 0, but not that of log p."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight[:] = torch.tensor([5.0, -5.0])[:, None]  # the other class has exp(-40)
    x = torch.ones((1, 1, 2, 2))
    assert net(x).softmax(-1)[0, 0].item() == 1.0
    assert torch.equal(attack.direction([net], x), torch.ones_like(x))


# -- tables and scripts


def test_paired_differences_by_hand() -> None:
    made = []
    for seed, ours, theirs in ((0, 91.0, 90.0), (1, 92.0, 90.5), (2, 93.0, None)):
        for kind, accuracy in (("sghmc-sa", ours), ("sghmc", theirs)):
            if accuracy is not None:
                figures = dict.fromkeys(rows.FIGURES, "0")
                figures |= {"accuracy_average": str(accuracy)}
                made.append({"seed": str(seed), "method": f"mnist net1 {kind}", **figures})
    line = report.differences(report.load(made)).iloc[0]
    assert line.label == "SGHMC, average" and line.seeds == 2
    assert line.accuracy_mean == pytest.approx(1.25)  # of 1 and 1.5
    assert line.accuracy_se == pytest.approx(0.25)


def test_settings_that_matter_are_in_every_row(tmp_path: Path) -> None:
    job = rows.Job(protocol.SMOKE, None, False, "cpu", tmp_path)
    texts = {method: job.settings_of(f"fashion net2 {method}") for method in protocol.METHODS}
    assert all("test images" in text for text in texts.values())
    assert "SSGL" in texts["sghmc-sa"] and "SSGL" not in texts["sghmc"]
    assert texts["vanilla"].startswith("Adam")
    with pytest.raises(KeyError):
        job.settings_of("fashion net2 nothing")


@pytest.mark.slow
@pytest.mark.tutorial
def test_mnist_and_its_adversaries_at_smoke_size(tmp_path: Path) -> None:
    run_script("reproduce/mnist.py", "--smoke", "--networks", "net1", cwd=tmp_path)
    out = tmp_path / "mnist_smoke"
    made = read_rows(out / "replicates.csv")
    assert [row["method"] for row in made] == [f"mnist net1 {m}" for m in protocol.METHODS]
    assert all(0.0 <= float(row["accuracy_average"]) <= 100.0 for row in made)
    assert "## MNIST, network 1" in (out / "table.md").read_text()
    assert (out / "scores.png").stat().st_size > 10_000

    # The draws on disk are those that were scored.
    row = protocol.Row("mnist", "net1", "sghmc-sa")
    states = torch.load(out / "draws" / "mnist-net1-sghmc-sa-0.pt", weights_only=True)
    job = rows.Job(protocol.SMOKE, None, False, "cpu", tmp_path)
    _, test = job.images("mnist")
    scores = rows.score_states(rows.network_of(row), states, test, "fp32")
    assert scores["nll_average"] == pytest.approx(float(made[3]["nll_average"]), rel=1e-4)

    found = run_script(
        "reproduce/adversarial.py", "--smoke", "--out", "mnist_smoke/attack", cwd=tmp_path
    )
    attacked = read_rows(out / "attack" / "replicates.csv")
    assert len(attacked) == 4 and "ζ = 0.1" in found
    # An attack of strength zero is none.
    by_name = {row["method"]: float(row["zeta_0"]) for row in attacked}
    for row in made:
        kind = "last" if row["method"].split()[2] in protocol.ADAM else "average"
        assert by_name[row["method"]] == pytest.approx(float(row[f"accuracy_{kind}"]))


@pytest.mark.slow
@pytest.mark.tutorial
def test_images_a_second_are_measured(tmp_path: Path) -> None:
    line = ["net1", "sghmc", "fp32", "channels-last", "as-written", "kept", "100"]
    printed = run_script("reproduce/images_per_second.py", "--line", *line, cwd=tmp_path)
    assert float(printed.split()[-1]) > 0.0


@pytest.mark.slow
@pytest.mark.tutorial
def test_the_sparse_classifier_at_smoke_size(tmp_path: Path) -> None:
    printed = run_script("sparse_classifier.py", "--smoke", cwd=tmp_path)
    assert "accuracy" in printed
    for file in ("sparse_classifier.png", "trace.nc"):
        assert (tmp_path / "sparse_classifier_output" / file).stat().st_size > 1_000

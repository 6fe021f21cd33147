# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A sparse classifier, start to finish
====================================

An ordinary torch network for the ten kinds of clothes of Fashion-MNIST becomes a Bayesian one, is
sampled and pruned to a fifth of its weights at the same time, and then says how sure it is: on test
images, on images turned by more and more degrees, and on pictures that are no clothes at all.

    python tutorials/sparse_classifier.py --data-dir DATA --download

It takes a few minutes on one CPU core and leaves a figure, the trace and the pruned network in
``sparse_classifier_output/``.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import MCMC
from reproduce.vision.augment import rotate
from reproduce.vision.data import Images, batches, load
from torch import Tensor, nn

import pyro_aeb as aeb

CLOTHES = "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
ANGLES = (0, 15, 30, 45, 60, 75, 90)

# 1. The network, and the model
# -----------------------------
# The network is a plain torch module. `bayesianize` gives every weight a prior: the two weight
# matrices get `SSGL`, a spike at zero (a Laplace distribution of scale v0) and a slab (a Gaussian
# of variance v1), the biases a Normal. How many weights of a layer are in the slab, delta, is
# learned; sigma, the unit of both widths, is fixed at 1.
#
# The model is then Pyro as usual. The plate tells how many images there are in all, and scales the
# likelihood of a batch to them.


def network() -> nn.Module:
    """784 pixels, 128 hidden units, 10 classes: 101,770 weights."""
    layers = OrderedDict(
        flat=nn.Flatten(), hidden=nn.Linear(784, 128), relu=nn.ReLU(), out=nn.Linear(128, 10)
    )
    return nn.Sequential(layers)


class Classifier:
    """
    The model of images and labels.

    :param net: of ``bayesianize``.
    :param int size: number of training images.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        self.net = net
        self.size = size

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        :param Tensor x: images, shape (n, 1, 28, 28).
        :param Tensor y: labels, shape (n,); None to predict them.
        """
        logits = self.net(x)
        with pyro.plate("data", self.size, subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


# 2. The run
# ----------
# The kernel moves the weights by stochastic-gradient Hamiltonian Monte Carlo, learns the latents as
# it goes, and after every step sets the smallest weights to zero, more of them as time goes on. A
# weight that was set to zero may grow back. `mcmc.run` takes the loader of training batches.
# MCMC's hook looks on: draws of warm-up are not kept, but the figure is to show them too.


class Watch:
    """Sparsity along the run, warm-up and all, for ``MCMC(..., hook_fn=watch.hook)``."""

    def __init__(self, sites: tuple[str, ...]) -> None:
        self.sites = sites
        self.steps: list[int] = []
        self.zeros: list[float] = []
        self.in_slab: list[float] = []

    def hook(self, kernel: aeb.AEBKernel, samples: Any, stage: str, i: int) -> None:
        """Takes down the share of weights that are zero, and that expected to be in the slab."""
        values = kernel.chain.values()
        weights = torch.cat([values[site].flatten() for site in self.sites])
        self.steps.append(kernel.chain.step)
        self.zeros.append(float((weights == 0).float().mean()))
        self.in_slab.append(float(kernel.latents.rho.mean()))


class Length(NamedTuple):
    """How long to run: draws of warm-up, draws to keep, and steps a draw."""

    warmup: int
    draws: int
    steps: int


def run_chain(
    net: aeb.nn.BayesianModule, train: Images, length: Length, watch: Watch, seed: int
) -> tuple[Classifier, MCMC]:
    """The model, and the finished run."""
    model = Classifier(net, len(train.labels))
    halfway = length.warmup * length.steps // 2
    end = length.warmup * length.steps
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(aeb.Piecewise(1e-6, {halfway: 0.5, end: 0.5}), friction=0.1),
        adaptation=aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.75)),
        pruning=aeb.MagnitudePruning(
            sparsity=aeb.PruningSchedule(target=0.8, damping=0.99, period=end / 450)
        ),
        inverse_temperature=1.0,
        steps_per_draw=length.steps,
        # 100,000 weights a draw are few enough to keep; of larger networks keep fewer sites.
        save=[*net.sparse_sites, *net.dense_sites, *net.latent_sites],
        seed=seed,
    )
    mcmc = MCMC(kernel, num_samples=length.draws, warmup_steps=length.warmup, hook_fn=watch.hook)
    mcmc.run(batches(train, 100, train=True, seed=seed))
    return model, mcmc


def main(args: argparse.Namespace) -> None:
    """The walkthrough."""
    args.out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(args.seed)
    train, test = load("fashion", args.data_dir, download=args.download)
    length = Length(4, 4, 2) if args.smoke else Length(40, 30, 200)

    net = aeb.nn.bayesianize(
        network(),
        sparse=["hidden", "out"],
        v0=0.05,
        v1=0.25,
        delta=dist.Beta(5000.0, 20_000.0),
        sigma2=1.0,
        dense_scale=1.0,
    )
    print(net)
    watch = Watch((*net.sparse_sites, *net.dense_sites))
    model, mcmc = run_chain(net, train, length, watch, args.seed)

    # 3. What it found
    # ----------------
    # `to_arviz` gives every array a name. The group `moments` holds means over the draws of what is
    # not kept draw by draw, among them the probability that each weight is of the slab.
    trace = aeb.to_arviz(mcmc)
    trace.to_netcdf(args.out / "trace.nc")
    inclusion = trace.moments["hidden.weight_rho_mean"].values[0]  # (128, 784)
    pixels = inclusion.mean(0).reshape(28, 28)
    for site in net.latent_sites:
        print(f"{site}: {float(mcmc.get_samples()[site][-1]):.3f}")

    # 4. Does it predict?
    # -------------------
    # The posterior average, against the last draw alone: the accuracy, and how honest the
    # probabilities are (NLL, Brier score, expected calibration error).
    predict = aeb.nn.PosteriorPredictive(model, mcmc)
    scores = predict.evaluate(batches(test, 1000))
    print(f"\n{scores}\n")

    # 5. A network to deploy
    # ----------------------
    # A draw is an ordinary module again, with its zeros in place.
    deployed = aeb.nn.sparse_module(net, mcmc, draw=-1)
    print(aeb.nn.parameter_counts(deployed))
    torch.save(deployed.state_dict(), args.out / "network.pt")

    # 6. Does it know what it does not know?
    # --------------------------------------
    # The entropy of the predicted probabilities is 0 where the network is sure and log 10 = 2.3
    # where it has no idea. It should rise on images unlike those of training. It does, on average,
    # for turned clothes and for digits, less for noise; and still some such images get a wrong
    # class with next to no doubt. A posterior of the weights knows which networks fit the training
    # images, and that is not all there is to know.
    images = next(iter(batches(test.take(slice(1000)), 1000)))[0]
    labels = test.labels[: len(images)]
    turned = {
        angle: predict(rotate(images, torch.full((len(images),), float(angle)))) for angle in ANGLES
    }
    strangers = {"test images": turned[0], "turned by 90°": turned[90]}
    strangers |= {name: predict(x) for name, x in no_clothes(args, len(images)).items()}
    print(f"\n{'':16}{'entropy':>9}{'P(class) > 0.9':>16}")
    for name, p in strangers.items():
        sure = float((p.amax(-1) > 0.9).float().mean())
        print(f"{name:16}{float(entropy(p).mean()):9.2f}{100 * sure:14.0f} %")

    figure = draw(watch, length, pixels, turned, labels, strangers, images)
    figure.savefig(args.out / "sparse_classifier.png", dpi=110)
    print(f"\nsparse_classifier.png, trace.nc and network.pt are in {args.out}")


def no_clothes(args: argparse.Namespace, n: int) -> dict[str, Tensor]:
    """Images of other things: noise, and digits where ``--data-dir`` has MNIST."""
    found = {"noise": torch.rand((n, 1, 28, 28))}
    try:
        digits = load("mnist", args.data_dir, download=args.download)[1]
    except FileNotFoundError:
        return found
    return {"digits": next(iter(batches(digits, n)))[0], **found}


def entropy(p: Tensor) -> Tensor:
    """Return the entropy of probabilities in the last axis, in nats."""
    return torch.special.entr(p).sum(-1)


# 7. The figure
# -------------
# Six views: how the network thinned out; which pixels have weights in the slab; accuracy, and
# entropy, of turned images; entropy of images of several kinds; and one image turned around, with
# what the network says to it.


def draw(
    watch: Watch,
    length: Length,
    pixels: Any,
    turned: dict[int, Tensor],
    labels: Tensor,
    strangers: dict[str, Tensor],
    images: Tensor,
) -> Figure:
    """
    The figure.

    :param Watch watch: sparsity along the run.
    :param Length length: of the run.
    :param pixels: mean inclusion probability of every pixel's weights, shape (28, 28).
    :param turned: probabilities for the images turned by every angle.
    :param Tensor labels: of these images.
    :param strangers: probabilities by kind of image.
    :param Tensor images: the test images themselves.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3)

    axes = panels[0, 0]
    thousands = np.array(watch.steps) / 1000
    axes.plot(thousands, watch.zeros, label="weights that are zero")
    axes.plot(thousands, watch.in_slab, label="expected in the slab")
    axes.axvline(length.warmup * length.steps / 1000, color="gray", linestyle=":")
    axes.set(title="sparsity (dotted: end of warm-up)", xlabel="thousand steps", ylim=(0.0, 1.0))
    axes.legend()

    axes = panels[0, 1]
    colours = axes.imshow(pixels, cmap="viridis")
    figure.colorbar(colours, ax=axes, shrink=0.8)
    axes.set(title="mean P(slab) of a pixel's weights", xticks=[], yticks=[])

    axes = panels[0, 2]
    right = [float((turned[a].argmax(-1) == labels).float().mean()) for a in ANGLES]
    unsure = [float(entropy(turned[a]).mean()) for a in ANGLES]
    axes.plot(ANGLES, right, "o-", label="accuracy")
    axes.plot(ANGLES, unsure, "s-", label="mean entropy, nats")
    top = 1.25 * max(*right, *unsure)  # the legend above the curves
    axes.set(title="turned test images", xlabel="degrees", xticks=ANGLES, ylim=(0.0, top))
    axes.legend(loc="upper center", ncols=2)

    axes = panels[1, 0]
    bins = np.linspace(0.0, np.log(10), 24)
    for name, p in strangers.items():
        axes.hist(entropy(p), bins=bins, density=True, histtype="step", linewidth=1.5, label=name)
    axes.set(title="how unsure, by kind of image", xlabel="entropy, nats", yticks=[])
    axes.legend()

    # The first test image that the network is sure about, and right.
    sure = (turned[0].argmax(-1) == labels) & (turned[0].amax(-1) > 0.99)
    which = int(sure.to(torch.uint8).argmax())
    axes = panels[1, 1]
    shown = [rotate(images[which][None], torch.tensor([a]))[0, 0] for a in (0.0, 30.0, 60.0, 90.0)]
    axes.imshow(torch.cat([torch.cat(shown[:2], 1), torch.cat(shown[2:], 1)]), cmap="gray_r")
    kind = CLOTHES[int(labels[which])]
    axes.set(title=f"one image ({kind}) at 0, 30, 60, 90°", xticks=[], yticks=[])

    axes = panels[1, 2]
    said = torch.stack([turned[angle][which] for angle in ANGLES])
    for kind in said.amax(0).argsort(descending=True)[:4].tolist():
        axes.plot(ANGLES, said[:, kind], "o-", label=CLOTHES[kind])
    axes.set(title="what the network says to it", xlabel="degrees", xticks=ANGLES)
    axes.set(ylabel="probability", ylim=(0.0, 1.35))
    axes.legend(loc="upper center", ncols=2)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A sparse Bayesian classifier of clothes.")
    parser.add_argument("--data-dir", type=Path, help="folder of torchvision's data sets")
    parser.add_argument("--download", action="store_true", help="fetch what is missing there")
    parser.add_argument("--out", type=Path, default=Path("sparse_classifier_output"))
    parser.add_argument("--seed", type=int, default=2019, help="of first weights and of the chain")
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that everything runs")
    arguments = parser.parse_args()
    if arguments.data_dir is None and not arguments.smoke:
        parser.error("--data-dir is missing: say where the data are, or use --smoke")
    main(arguments)

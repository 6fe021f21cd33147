# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The structure of a model, as plain data: its sites, and their places in the position.

:func:`~pyro_aeb.model.inspection.inspect_model` finds it. The *position* is one flat vector of D
numbers that holds all weights: first the sparse slab (all sites with a spike-and-slab prior, P
numbers), then the sites with a fixed normal prior, then all others, in unconstrained space. Sites
are views of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_aeb.errors import ModelError
from pyro_aeb.latents.contract import LatentUpdate
from pyro_aeb.model.side_effects import Place
from pyro_aeb.priors import SSGL, SpikeAndSlab
from pyro_aeb.priors.scales import ScaleTerms


def has_weights(scale: Any) -> bool:
    """Whether a site's scale is a tensor with an axis, which weighs every datum by its own."""
    return isinstance(scale, Tensor) and scale.dim() > 0


@dataclass(frozen=True)
class Block:
    """
    One site's place in the flat position.

    :param str name: the site.
    :param torch.Size shape: the shape of its unconstrained value.
    :param Transform transform: from unconstrained to constrained space, None for the identity.
    """

    name: str
    shape: torch.Size
    transform: Transform | None = None

    @property
    def size(self) -> int:
        return self.shape.numel()


@dataclass(frozen=True)
class SparseBlock(Block):
    """
    A site with a spike-and-slab prior, in the sparse slab.

    :param prior: the class of its prior.
    :param parameters: the parameters of the prior's components by name, each a number or a tensor
        of the site's shape.
    :param sigma: index of its sigma in :attr:`Structure.sigmas`, or that of every weight.
    :param delta: index of its delta in :attr:`Structure.deltas`, likewise.
    :param int group: the number of consecutive weights that share a gamma.
    """

    prior: type[SpikeAndSlab] = SSGL
    parameters: Mapping[str, float | Tensor] = field(
        default_factory=lambda: {"v0": 0.1, "v1": 10.0}
    )
    sigma: int | Tensor = 0
    delta: int | Tensor = 0
    group: int = 1


@dataclass(frozen=True)
class NormalBlock(Block):
    """
    A site with a normal prior that depends on nothing sampled.

    :param Tensor loc: prior mean, of the site's shape.
    :param Tensor scale: prior standard deviation, of the site's shape.
    """

    loc: Tensor = field(default_factory=lambda: torch.zeros(()))
    scale: Tensor = field(default_factory=lambda: torch.ones(()))


@dataclass(frozen=True)
class Sigma:
    """
    A scale sigma of weights with a spike-and-slab prior, one number.

    :param str site: the InverseGamma site of sigma squared, or the site of sigma under another
        prior; None if sigma is a fixed number.
    :param float fixed: that number; None if sigma is learned.
    :param float nu: prior degrees of freedom; sigma squared ~ InverseGamma(nu/2, nu lambda/2).
    :param float nu_lambda: nu times lambda.
    :param frozenset likelihoods: observed Normal or StudentT sites whose scale is a multiple of
        this sigma.
    :param torch.Size shape: of the site's value.
    :param ScaleTerms terms: of another prior of sigma itself; None for an InverseGamma.
    :param int index: of this number in the site's flat value.
    """

    site: str | None
    fixed: float | None = None
    nu: float = 0.0
    nu_lambda: float = 0.0
    likelihoods: frozenset[str] = frozenset()
    shape: torch.Size = torch.Size()
    terms: ScaleTerms | None = None
    index: int = 0

    def of_site(self, value: Tensor) -> Tensor:
        """Return sigma from the value of its site."""
        return value.sqrt() if self.terms is None else value


@dataclass(frozen=True)
class Delta:
    """
    A prior inclusion probability delta of weights with a spike-and-slab prior, one number.

    :param str site: the Beta site; None if delta is a fixed number.
    :param float fixed: that number; None if delta is learned.
    :param float a: the first parameter of Beta(a, b).
    :param float b: the second.
    :param torch.Size shape: of the site's value.
    :param int index: of this number in the site's flat value.
    """

    site: str | None
    fixed: float | None = None
    a: float = 1.0
    b: float = 1.0
    shape: torch.Size = torch.Size()
    index: int = 0


@dataclass(frozen=True)
class Width:
    """
    The width v0 of the Laplace spikes of all weights with a spike-and-slab prior, where it is
    learned.

    :param str site: of v0, with an InverseGamma prior.
    :param float concentration: c of the prior, that of Gamma(c, d) of 1 / v0.
    :param float rate: its d.
    :param torch.Size shape: of the site's value.
    """

    site: str
    concentration: float
    rate: float
    shape: torch.Size = torch.Size()


@dataclass(frozen=True)
class LearnedSite:
    """
    A latent site that is learned by an update given as ``latents=``.

    :param str name: the site.
    :param torch.Size shape: of its value.
    :param Transform transform: from unconstrained space to its values.
    :param LatentUpdate update: how it is learned.
    """

    name: str
    shape: torch.Size
    transform: Transform
    update: LatentUpdate


@dataclass(frozen=True)
class Structure:
    """
    A model's sites, by how the kernel treats them.

    :param sparse: sites with a spike-and-slab prior, in the order of the slab.
    :param normal: sites with a fixed normal prior, whose gradient has a closed form.
    :param general: all other continuous latents, scored by their own ``log_prob``.
    :param observed: names of the observed sites that are data.
    :param plates: plate name to (size, subsample size).
    :param dims: site name to the plate of each axis of its value, None for an axis of no plate.
    :param observations: observed site name to its value, if that is a tensor and no subsample.
    :param dtype: of the position.
    :param device: of the position.
    :param learned: latent sites that are learned by updates given as ``latents=``.
    :param changed_buffers: the places of the module buffers that a run of the model changes.
    :param reparametrised: names of the latents that ``poutine.reparam`` computes from others.
    :param sigmas_of_data: observed site to the indices of its sigmas in :attr:`sigmas`, which
        broadcast to its value, where it has several.
    :param width: of the spikes, None where it is fixed.
    :param parents: latent site to the latent sites that its prior depends on, if there are any.
    """

    sparse: tuple[SparseBlock, ...]
    normal: tuple[NormalBlock, ...]
    general: tuple[Block, ...]
    sigmas: tuple[Sigma, ...]
    deltas: tuple[Delta, ...]
    observed: tuple[str, ...]
    plates: Mapping[str, tuple[int, int]]
    dims: Mapping[str, tuple[str | None, ...]]
    observations: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    learned: tuple[LearnedSite, ...] = ()
    changed_buffers: tuple[Place, ...] = ()
    reparametrised: tuple[str, ...] = ()
    sigmas_of_data: Mapping[str, Tensor] = field(default_factory=dict)
    width: Width | None = None
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, in the order of the position."""
        return self.sparse + self.normal + self.general

    @cached_property
    def sparse_size(self) -> int:
        """P, the number of sparse weights."""
        return sum(block.size for block in self.sparse)

    @cached_property
    def size(self) -> int:
        """D, the length of the position."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def latent_sites(self) -> tuple[str, ...]:
        """Names of the sites that adaptation learns."""
        names = [sigma.site for sigma in self.sigmas] + [delta.site for delta in self.deltas]
        names += [self.width.site] if self.width is not None else []
        names += [site.name for site in self.learned]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @cached_property
    def _transforms(self) -> dict[str, Transform]:
        return {b.name: b.transform for b in self.blocks if b.transform is not None}

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """
        Return the position of constrained values, shape (D,).

        :param values: site name to constrained value.
        :raises ModelError: if a value is not of its site's shape.
        """
        parts = []
        for block in self.blocks:
            value, transform = values[block.name], block.transform
            expected = block.shape if transform is None else transform.forward_shape(block.shape)
            if value.shape != expected:
                raise ModelError(
                    f"site {block.name!r} has a value of shape {tuple(value.shape)}, expected "
                    f"{tuple(expected)}; look at init_strategy"
                )
            if transform is not None:
                value = transform.inv(value)
            parts.append(value.detach().reshape(-1))
        return torch.cat(parts).to(self.dtype)

    def unflatten(self, position: Tensor) -> dict[str, Tensor]:
        """
        Return the sites as views of a position, in unconstrained space.

        :param Tensor position: shape (..., D).
        """
        batch, blocks = position.shape[:-1], self.blocks
        parts = (position,)
        if len(blocks) > 1:  # one backward node fewer, 3 % of a small model's step
            parts = position.split([block.size for block in blocks], dim=-1)
        return {b.name: p.view(batch + b.shape) for b, p in zip(blocks, parts, strict=True)}

    def constrain(self, unconstrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """
        Map the sites to constrained space.

        :param unconstrained: from :meth:`unflatten`, with any leading axes.
        """
        values = dict(unconstrained)
        for name, transform in self._transforms.items():
            values[name] = transform(unconstrained[name])
        return values

    def select_sparse(self, vector: Tensor) -> Tensor:
        """Return the sparse slab of a vector of shape (..., D): a view, shape (..., P)."""
        return vector if self.size == self.sparse_size else vector[..., : self.sparse_size]


class Residuals(NamedTuple):
    r"""
    The residuals of an observed Normal or StudentT site whose scale is a multiple of sigma; where
    it has several, one number for each.

    :param Tensor square: :math:`I = (N/n) \sum w ((y - loc)/c)^2`, with scale = c sigma; w is 1
        for a Normal, and for a StudentT the expected precision, relative to the scale's.
    :param data: N, the number of data.
    """

    square: Tensor
    data: float | Tensor


def norm_name(site: str) -> str:
    """Return the name under which draws hold a site's Euclidean norm, where not its values."""
    return f"{site}_norm"


def rho_name(site: str) -> str:
    """Return the name of a sparse site's inclusion probabilities in a draw."""
    return f"{site}_rho"


def gamma_name(site: str) -> str:
    """Return the name of a sparse site's drawn gammas in a draw."""
    return f"{site}_gamma"

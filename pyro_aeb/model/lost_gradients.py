# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Check that gradients show how the densities of a model depend on its sampled sites.

All sites are moved at once: the change of every density is compared with its directional
derivative. What autograd cannot show at one place, a step such as ``x > c``, is looked for between
distant values of the sites that such operations take, or that have no gradient. A site alone is
moved only where something is wrong. So the model runs a few times, however many sites it has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError, is_domain_error
from pyro_aeb.model.gradient_watch import GradientWatch, Loss, find_ancestors
from pyro_aeb.model.perturbation import is_close, perturb, trace_perturbed
from pyro_aeb.model.side_effects import preserve_random_state
from pyro_aeb.model.sites import Site, log_density, unwrap
from pyro_aeb.model.tracing import Tracer

MOVES = (0.01, 0.002)
"""The lengths of moves, in units of a perturbation. A lost gradient shows at both."""

TOLERANCE = 0.01
"""The largest share of a density's change that its gradient may leave unexplained."""

GROUPS = 32
"""The most sums of densities that are differentiated one by one."""

HALVINGS = range(12, 22)
"""
How often the distance of two values is halved in the search for a step between them: at least, for
a slope may be steep, and at most.
"""


def check_gradients(
    sites: Mapping[str, Site], sampled: Collection[str], trace: Tracer
) -> dict[str, tuple[str, ...]]:
    """
    Check that gradients show every dependence of a distribution on the sampled sites.

    :param sites: the sites of a trace at feasible values, without plates and deterministic ones.
    :param sampled: names of the sites that are sampled by gradient.
    :returns: the latent sites whose densities depend on others, with those.
    :raises ModelError: if a dependence has no gradient, or a support depends on another site.
    """
    latent = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    centers: list[_Center] = []

    def trace_there(values: Mapping[str, Tensor]) -> dict[str, Site]:
        centers.append(_Center(sites, values, trace))
        return centers[-1].traced

    def densities_there(_: Collection[Site]) -> Collection[Tensor]:
        return centers[-1].densities.values()

    trace_perturbed(sites, latent, latent.keys(), trace_there, densities_there)
    center = centers[-1]
    for name in latent.keys() & center.traced.keys():
        _check_support(sites[name], center.traced[name])
    center.check_moves(sampled)
    if suspects := center.suspects(sampled):
        is_known = not suspects.isdisjoint(name for loss in center.losses for name in loss.sites)
        if is_known and suspects != set(sampled):
            center.check_moves(suspects)
        _check_steps(center, suspects, 4 if is_known else 1)
    return {name: parents for name, parents in center.parents.items() if parents}


class _Center:
    """
    The densities of a model at some values, their gradients, and moves from there.

    :param values: latent site name to constrained value.
    :param int groups: the most groups of densities whose sums are differentiated.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        values: Mapping[str, Tensor],
        trace: Tracer,
        groups: int = GROUPS,
    ) -> None:
        self.sites, self.trace = sites, trace
        self.values = {name: value.detach() for name, value in values.items()}
        self._precision = max(torch.finfo(value.dtype).eps for value in values.values())
        self._transforms = {name: biject_to(sites[name]["fn"].support) for name in values}
        leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
        watch = GradientWatch(leaves)
        with watch, _explain_numpy(watch):
            traced = trace(leaves, grad=True)
        self.losses = watch.losses
        self.traced = {name: site for name, site in traced.items() if name in sites}
        with torch.enable_grad():  # also where the caller has turned gradients off
            densities = {n: log_density(s, self.values.get(n)) for n, s in self.traced.items()}
        self.densities = {name: density.detach().double() for name, density in densities.items()}
        names = {id(leaf): name for name, leaf in leaves.items()}
        self.parents = {  # none where a prior has a gradient of fixed parameters alone
            name: tuple(sorted(find_ancestors(densities[name], names)))
            for name in leaves
            if name in densities
        }
        self.dependent = [
            name
            for name, density in densities.items()
            if density.requires_grad and self.parents.get(name, True)
        ]
        fixed = [name for name in densities if name not in self.dependent]
        self.groups = _split(self.dependent, groups) + _split(fixed, groups)
        with torch.enable_grad():
            totals = [torch.stack([densities[n].sum() for n in g]).sum() for g in self.groups]
        self.gradients = [_differentiate(total, leaves) for total in totals]

    def densities_at(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """
        Return the log densities of the sites at other values of those that they depend on.
        """
        traced = self.trace({**self.values, **values})
        return {
            name: log_density(traced[name], self.values.get(name)).detach().double()
            for name in self.densities
            if name in traced
        }

    def suspects(self, sampled: Collection[str]) -> set[str]:
        """Return the sites with no gradient, and those that lose a part of it on the way."""
        lost = {name for loss in self.losses for name in loss.sites}
        rest = {name for name in sampled if name not in lost}
        for gradients in self.gradients:
            rest -= {name for name in rest & gradients.keys() if bool(gradients[name].any())}
        return {name for name in sampled if name in lost or name in rest}

    def check_moves(self, names: Collection[str]) -> None:
        """
        Check the gradients of all densities by small moves of some sites at once.

        :raises ModelError: if one is wrong.
        """
        for seed in (1, 2):  # the second is to be sure
            step = self._step(perturb(self.sites, self.values, names, seed=seed))
            wrong = set(range(len(self.groups)))
            for move in MOVES:
                wrong &= self._find_wrong(names, step, move)
                if not wrong:
                    return
        group = min(wrong)
        if len(self.groups[group]) > 1:
            count = len(self.densities)
            _Center(self.sites, self.values, self.trace, count).check_moves(names)
        rest = sorted(names)
        while len(rest) > 1:
            half = rest[: len(rest) // 2]
            found = all(group in self._find_wrong(half, step, move) for move in MOVES)
            rest = half if found else rest[len(half) :]
        raise self.error(self.groups[group][0], rest[0])

    def _step(self, end: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return where the way to other values begins, and its length, in unconstrained space."""
        free = {}
        for name, value in end.items():
            start = self._transforms[name].inv(self.values[name])
            free[name] = start, self._transforms[name].inv(value) - start
        return free

    def _along(
        self, names: Collection[str], step: Mapping[str, tuple[Tensor, Tensor]], share: float
    ) -> dict[str, Tensor]:
        """Return values of some sites after a share of a step."""
        return {n: self._transforms[n](step[n][0] + share * step[n][1]) for n in names}

    def _find_wrong(
        self, names: Collection[str], step: Mapping[str, tuple[Tensor, Tensor]], move: float
    ) -> set[int]:
        """Return the groups whose densities' changes by a move their gradients do not explain."""
        above, below = (self._along(names, step, share) for share in (move, -move))
        try:
            after, before = self.densities_at(above), self.densities_at(below)
        except Exception as error:
            if not is_domain_error(error):
                raise
            return set()
        moved = {name: (above[name] - below[name]).double().reshape(-1) for name in names}
        wrong = set()
        for i, (group, gradients) in enumerate(zip(self.groups, self.gradients, strict=True)):
            common = [name for name in gradients if name in moved]
            expected = 0.0
            if common:
                gradient = torch.cat([gradients[name].reshape(-1) for name in common]).double()
                expected = float(gradient.dot(torch.cat([moved[name] for name in common])))
            change, size, bend, level = 0.0, abs(expected), 0.0, 0.0
            for name in group:
                a, b, center = after.get(name), before.get(name), self.densities[name]
                if a is None or b is None or not a.shape == b.shape == center.shape:
                    change = math.nan
                    break
                sums = torch.stack([(a - b).sum(), (a - b).abs().sum(), (a + b - 2 * center).sum()])
                each = sums.tolist()
                change, size, bend = change + each[0], size + each[1], bend + abs(each[2])
                level += float(center.abs().sum())
            slack = TOLERANCE * size + 10.0 * bend + 32.0 * self._precision * level
            if abs(change - expected) > slack:  # never where one is not finite
                wrong.add(i)
        return wrong

    def find_step(self, names: Collection[str], end: Mapping[str, Tensor]) -> bool:
        """
        Look for a step of a density on the way to other values of some sites.

        :returns: whether a density changes on the way.
        :raises ModelError: if it changes by a step, or without a gradient where it changes most.
        """
        step, low, high, sudden, repeated = self._step(end), 0.0, 1.0, False, 0
        try:
            at_low, at_high = self.densities, self.densities_at(end)
            change, density = self._largest_change(at_low, at_high)
            if not change:
                return False
            for halving in range(HALVINGS.stop):
                middle = 0.5 * (low + high)
                at_middle = self.densities_at(self._along(names, step, middle))
                first = self._largest_change(at_low, at_middle)
                second = self._largest_change(at_middle, at_high)
                change, density = max(first, second)
                if first > second:
                    high, at_high = middle, at_middle
                else:
                    low, at_low = middle, at_middle
                is_sudden = min(first, second)[0] <= 0.1 * change
                repeated = repeated + 1 if is_sudden == sudden else 1
                sudden = is_sudden
                if not change or (repeated >= 3 and halving >= HALVINGS.start):
                    break
        except Exception as error:
            if not is_domain_error(error):
                raise
            return True
        if sudden and repeated >= 3 and change:
            raise self.error(density, self._find_stepping(names, step, (low, high), density))
        here = {**self.values, **self._along(names, step, low)}
        _Center(self.sites, here, self.trace).check_moves(names)
        return True

    def _largest_change(
        self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]
    ) -> tuple[float, str]:
        """Return the largest change of a number between two densities, beyond rounding."""
        largest = 0.0, ""
        for name in one.keys() & other.keys():
            a, b = one[name], other[name]
            if a.shape != b.shape:
                return math.inf, name
            finite = torch.isfinite(a) & torch.isfinite(b)
            if not bool(finite.any()):
                continue
            change = float((a - b).abs()[finite].max())
            if change > 256.0 * self._precision * float(a[finite].abs().max()):
                largest = max(largest, (change, name))
        return largest

    def _find_stepping(
        self,
        names: Collection[str],
        step: Mapping[str, tuple[Tensor, Tensor]],
        shares: tuple[float, float],
        density: str,
    ) -> str:
        """Return the site at whose step a density changes between two shares of a step."""
        low, high = (self._along(names, step, share) for share in shares)
        before, rest = self.densities_at(low), sorted(names)
        while len(rest) > 1:
            half = rest[: len(rest) // 2]
            after = self.densities_at({**low, **{name: high[name] for name in half}})
            change, _ = self._largest_change({density: before[density]}, after)
            rest = half if change else rest[len(half) :]
        return rest[0]

    def error(self, density: str, latent: str) -> ModelError:
        """Return the error of a density that depends on a site without a gradient."""
        return _lost_error(density, latent, [x for x in self.losses if latent in x.sites])


def _check_steps(center: _Center, names: Collection[str], tries: int) -> None:
    """
    Look for steps of densities between the center and distant values of some sites, until a density
    differs at such values.

    :raises ModelError: if there is one.
    """
    for number in range(tries):
        # A threshold is among the data, where its prior is; not all priors have draws.
        end = perturb(center.sites, center.values, names, size=2.0, seed=3 + number)
        if number < 3:
            end |= _draw_from_priors(center, names, number)
        if center.find_step(names, end):
            return


def _draw_from_priors(center: _Center, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Return draws of some sites from their priors, where these have any."""
    values = {}
    with preserve_random_state(), torch.no_grad():
        pyro.set_rng_seed(seed)
        for name in sorted(names):
            with suppress(NotImplementedError):
                values[name] = center.traced[name]["fn"].sample().to(center.values[name])
    return values


def _lost_error(density: str, latent: str, losses: Collection[Loss]) -> ModelError:
    """Return the error of a density that depends on a site without a gradient."""
    steps = [loss for loss in losses if loss.step]
    loss = next(iter(steps or losses), None)
    if loss is None:
        cause = (
            "as after float(x), x.item(), x.detach(), torch.tensor(x), torch.no_grad() or NumPy; "
            "pass the tensor itself, through functions of torch whose gradient is right"
        )
    elif loss.step:
        cause = (
            f"which {loss.kind} loses ({loss.place}): it is a step, with no gradient anywhere, as "
            "float(x) has none. Write a smooth one, torch.sigmoid((x - threshold) / width), or sum "
            "the site out over a grid of its values by torch.logsumexp in a pyro.factor"
        )
    else:
        cause = (
            f"which {loss.kind} loses ({loss.place}), as float(x), x.item(), x.detach() and NumPy "
            "do; pass the tensor itself"
        )
    return ModelError(
        f"the distribution of site {density!r} depends on site {latent!r} without a gradient, "
        f"{cause}"
    )


def _split(names: list[str], most: int) -> list[list[str]]:
    """Split names into groups, at most some of them."""
    count = min(most, len(names))
    return [names[i::count] for i in range(count)]


def _differentiate(total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of a number with respect to the leaves that it has one for."""
    if not total.requires_grad:
        return {}
    gradients = torch.autograd.grad(total, [*leaves.values()], retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}


@contextmanager
def _explain_numpy(watch: GradientWatch) -> Iterator[None]:
    """Turn torch's refusal to give a tensor with a gradient to NumPy into a ModelError."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if "requires grad" not in str(error) or "numpy()" not in str(error) or not watch.losses:
            raise
        loss = watch.losses[-1]
        raise ModelError(
            f"the model gives site {min(loss.sites)!r} to NumPy ({loss.place}), which has no "
            "gradient; compute with torch instead"
        ) from error


def _check_support(site: Site, perturbed: Site) -> None:
    transforms = [biject_to(s["fn"].support) for s in (site, perturbed)]
    free = transforms[0].inv(site["value"])
    if not is_close(transforms[0](free), transforms[1](free)):
        raise ModelError(
            f"site {site['name']!r} ~ {type(unwrap(site['fn'])).__name__} has a support that "
            "depends on another site, expected a fixed one; sample a number of fixed support and "
            "scale it in the model"
        )

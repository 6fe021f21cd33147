# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The outcome of tuning, in numbers and words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

HOT = 1.2
"""Kinetic temperature of a site above which its curvature changes too much within a step."""

WARM = 1.1
"""Kinetic temperature above which minibatches widen the variances by more than a tenth."""

CURE = "; cure: "
"""What parts a warning from its cure."""

FEW_DRAWS = 10.0
"""Draws per effective draw above which a thousand of them are few."""


@dataclass(frozen=True)
class Tuning:
    """
    The settings that tuning has chosen.

    :param float step_size: of the transition, relative to the scale.
    :param float friction: of the transition.
    :param int steps_per_draw: steps between draws.
    :param scale: site to the scales of its weights, of the site's shape in unconstrained space.
    :param float largest_curvature: of the weights divided by their scale.
    :param kinetic_temperature: site to its temperature in the pilot, which should be 1.
    :param float autocorrelation: steps that an independent draw takes, as far as the pilot shows.
    :param str slowest: the site of that draw.
    :param int steps: steps so far, or in all of warm-up once it is over.
    :param bool minibatches: whether gradients are of minibatches.
    :param bool finished: whether warm-up is over and the settings are frozen.
    :param parents: site to the sites that its prior depends on, if there are any.
    """

    step_size: float
    friction: float
    steps_per_draw: int
    scale: Mapping[str, Tensor]
    largest_curvature: float
    kinetic_temperature: Mapping[str, float]
    autocorrelation: float
    slowest: str
    steps: int
    minibatches: bool
    finished: bool
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the choice in one line."""
        done = "" if self.finished else " so far"
        return (
            f"Tuned in {self.steps:,} steps{done}: step size {self.step_size:.3g} (largest "
            f"curvature {self.largest_curvature:.3g}), friction {self.friction:.2g}, scales "
            f"{self._range()}, {self.steps_per_draw} step(s) per draw, of "
            f"{self.autocorrelation:.0f} for an independent one; kinetic temperature "
            f"{self._hottest()}."
        )

    def __repr__(self) -> str:
        """Return the choice, with a line for every site."""
        rows = [str(self)]
        width = max(map(len, self.scale), default=0)
        for site, scale in self.scale.items():
            temperature = self.kinetic_temperature.get(site)
            heat = "" if temperature is None else f", kinetic temperature {temperature:.3f}"
            low, high = float(scale.min()), float(scale.max())
            rows.append(f"  {site:{width}}  scales {low:.3g} to {high:.3g}{heat}")
        return "\n".join(rows)

    def _range(self) -> str:
        low = min((float(scale.min()) for scale in self.scale.values()), default=1.0)
        high = max((float(scale.max()) for scale in self.scale.values()), default=1.0)
        return f"{low:.3g} to {high:.3g}"

    def _hottest(self) -> str:
        if not self.kinetic_temperature:
            return "not measured yet"
        site, heat = max(self.kinetic_temperature.items(), key=lambda item: item[1])
        return f"at most {heat:.2f} ({site!r})"

    def warnings(self) -> list[str]:
        """Return what the pilot shows to be wrong, with the cure."""
        messages = temperature_warnings(self.kinetic_temperature, self.minibatches, self.parents)
        draws = self.autocorrelation / self.steps_per_draw
        if draws > FEW_DRAWS:
            messages.append(
                f"an independent draw of site {self.slowest!r} takes some "
                f"{self.autocorrelation:,.0f} steps, so 1000 draws of {self.steps_per_draw} "
                f"step(s) are worth {1000.0 / draws:,.0f}{CURE}raise steps_per_draw or "
                "num_samples, or look for weights that depend strongly on each other; or "
                + reparametrise([self.slowest], self.parents)
            )
        return messages


def hot_sites(temperatures: Mapping[str, float], minibatches: bool) -> list[str]:
    """Return the sites whose kinetic temperature is too high."""
    return [site for site, heat in temperatures.items() if heat > (WARM if minibatches else HOT)]


def reparametrise(sites: Collection[str], parents: Mapping[str, Sequence[str]]) -> str:
    """
    Return what to reparametrise where some sites are hot or slow.

    A funnel shows at the scale, at the mean or at the site that has them, whichever is measured the
    worst. The site to reparametrise is always the last: the one whose prior depends on others.
    """
    related = {
        child: names for child, names in parents.items() if not {child, *names}.isdisjoint(sites)
    }
    cure = "e.g. by pyro.infer.reparam.LocScaleReparam"
    if not related:
        return f"reparametrise it, {cure}"
    each = [f"{child!r} depends on {', '.join(map(repr, n))}" for child, n in related.items()]
    more = f" and {len(each) - 3} more" if len(each) > 3 else ""
    named = "; ".join(each[:3])
    return f"reparametrise the sites whose priors depend on others ({named}{more}), {cure}"


def temperature_warnings(
    temperatures: Mapping[str, float], minibatches: bool, parents: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return a message on the sites that are too hot, with the cure, if there are any."""
    hot = hot_sites(temperatures, minibatches)
    if not hot:
        return []
    worst = max(hot, key=lambda site: temperatures[site])
    others = f" and {len(hot) - 1} more" if len(hot) > 1 else ""
    heat = f"{temperatures[worst]:.2f}, expected 1"
    found = f"the kinetic temperature of site {worst!r}{others} is {heat}"
    if minibatches:
        cure = (
            "the noise of the minibatches widens its posterior by more than a tenth: use larger "
            "minibatches. If that does not help, its curvature changes too much within a step, as "
            "in a funnel: " + reparametrise(hot, parents)
        )
    else:
        cure = (
            "its curvature changes too much within a step, as in a funnel, where the scale of a "
            "site is another site, and draws from there are wrong: " + reparametrise(hot, parents)
        )
    return [f"{found}{CURE}{cure}"]

# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The settings: the theorem's case, its controls, and cases without its conditions."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_aeb import Constant, Polynomial

Schedule = Constant | Polynomial

LARGE_STEP = 0.5
"""Step size times curvature. Large, for a chain that forgets fast; the truth allows for it."""


@dataclass(frozen=True)
class Setting:
    """
    :param label: for tables.
    :param omega: weight of the stochastic approximation.
    :param step: step size times the likelihood's curvature, a schedule.
    :param steps: length of a chain.
    :param design: which of :data:`.designs.DESIGNS`.
    :param kept: the share of the steps, at the end, that draws of the weights are taken from.
    """

    label: str
    omega: Schedule
    step: Schedule = Constant(LARGE_STEP)
    steps: int = 20_000
    design: str = "main"
    kept: float = 0.0

    @property
    def fixed_step(self) -> float | None:
        """The step where it does not shrink, else None."""
        return self.step.value if isinstance(self.step, Constant) else None


FORGETTING = Polynomial(3.0, 10.0, 0.75)

THEOREM = {
    "alpha 0.6": Setting("α = 0.6", Polynomial(1.5, 10.0, 0.6)),
    "alpha 0.75": Setting("α = 0.75", FORGETTING),
    "alpha 0.9": Setting("α = 0.9", Polynomial(6.0, 10.0, 0.9)),
    "alpha 1": Setting("α = 1", Polynomial(10.0, 20.0, 1.0)),
}
CONTROLS = {
    "omega 0.1": Setting("ω = 0.1", Constant(0.1), steps=4000),
    "omega 0.05": Setting("ω = 0.05", Constant(0.05), steps=4000),
    "omega 0.025": Setting("ω = 0.025", Constant(0.025), steps=4000),
    "omega 1": Setting("ω = 1 (EM)", Constant(1.0), steps=4000),
}
CONDITIONS = {
    "small gain": Setting("α = 1, C L = 1/4", Polynomial(0.65, 1.0, 1.0)),
    "smaller step": Setting("α = 0.75, ε h = 0.2", FORGETTING, Constant(0.2)),
    "shrinking step": Setting("α = 0.75, ε ∝ k^(-1/4)", FORGETTING, Polynomial(0.5, 0.0, 0.25)),
    "two points": Setting(
        "α = 0.75, two fixed points", FORGETTING, Constant(0.05), design="two points"
    ),  # fmt: skip
}
LAW = {
    f"law {step:g}": Setting(f"ε h = {step:g}", FORGETTING, Constant(step), 10_000, kept=0.6)
    for step in (0.8, 0.4, 0.2, 0.1, 0.05)
}
SETTINGS = THEOREM | CONTROLS | CONDITIONS | LAW

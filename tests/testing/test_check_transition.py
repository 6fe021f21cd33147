# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``check_transition`` passes right samplers and catches wrong ones."""

import re

import broken_mechanisms as mechanisms
import broken_samplers as broken
import pytest
import torch
from samplers import ALL_TRANSITIONS, LINEAR, SIMULATED, transition_classes

import pyro_aeb as aeb
from pyro_aeb import SGHMC, SGLD
from pyro_aeb.testing import check_contract, check_simulated_law, check_transition


@pytest.mark.parametrize("transition", [*LINEAR, broken.Langevin()], ids=repr)
def test_right_samplers_pass(transition):
    report = aeb.testing.check_transition(transition)
    assert report.subject == repr(transition)
    assert "linear on Gaussians" in report["kind"].result
    order = LINEAR.get(transition, "order 1.0")  # broken.Langevin() is SGLD
    assert report["stationary covariance"].result.endswith(
        order if order.startswith("exact") else f"{order} in the step size"
    )


@pytest.mark.parametrize("transition", SIMULATED, ids=repr)
def test_right_samplers_that_are_not_linear_pass(transition):
    report = aeb.testing.check_transition(transition)
    assert "not linear" in report["kind"].result
    assert "means and variances within 0.1" in report["simulated law"].result


def test_every_transition_of_the_package_is_here():
    assert transition_classes() == {type(transition) for transition in ALL_TRANSITIONS}


def test_noise_in_the_gradient_that_is_made_up_for():
    transition = SGHMC(0.05, friction=0.4, gradient_noise=0.3)

    def variance(numbers):
        """Return the variance g that beta hat estimates, beta hat = eta tau g / 2."""
        return 2 * 0.3 / (numbers.step_size * numbers.inverse_temperature)

    check_transition(transition, variance)
    # Without it, only (alpha - beta hat) / alpha = 1/4 of the noise is there.
    with pytest.raises(AssertionError, match="0.25 times the target's.*gradient_variance"):
        check_transition(transition)


WRONG = {
    broken.NoiseTooSmall: "0.5 times the variance it should have at every temperature",
    broken.NoiseOfAnotherOrder: "stationary covariance",
    broken.WrongSign: "diverges on a Gaussian: look at the sign",
    broken.NoTemperature: r"error grows like tau\^1: look at how the step uses the inverse",
    broken.TemperatureTwice: r"error grows like tau\^-1: look at how the step uses the inverse",
    broken.NoNoise: "look at the noise: does the step use it",
    broken.WeightDecay: "stationary mean.*a force that is not the gradient's",
    broken.OwnStepSize: "depends on the transition's own schedule",
    broken.ConstantStepSize: "the same step at step sizes 0.05 and 0.1",
    broken.OwnNoise: "draws from torch's generator",
    broken.InPlace: r"\['position'\] changed",
    broken.NoiseInPlace: r"\['noise'\] changed",
    broken.MixesChains: "between chain 0 of 3 and alone",
    broken.SinglePrecision: "does not react to a relative change of 2e-11 of the gradient",
    broken.Remembers: "the same step twice",
    broken.MeanOverChains: "one number per chain",
    broken.PositionLast: "whose first field is 'position'",
    broken.KeepsTheGradient: "shares memory with the gradient or the noise",
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_wrong_samplers_are_caught(kind):
    with pytest.raises(AssertionError, match=WRONG[kind]) as caught:
        check_transition(kind())
    assert re.search("found .*expected ", str(caught.value), re.S)


def test_every_wrong_sampler_is_here():
    classes = {
        kind
        for kind in vars(broken).values()
        if isinstance(kind, type) and issubclass(kind, broken.Langevin)
    }
    assert classes - {broken.Langevin} == WRONG.keys()


def test_friction_that_does_not_match_the_noise_is_caught():
    with pytest.raises(AssertionError, match="2 times the variance it should have"):
        check_transition(broken.MomentumWithoutFriction(0.05, friction=0.01))


def test_a_class_in_a_function_does_not_pickle():
    class Local(broken.Langevin):
        pass

    with pytest.raises(AssertionError, match="define classes at the top level of a module"):
        check_contract(Local())


# -- not linear: by simulation ---------------------------------------------------------------------


def test_a_thermostat_passes_by_simulation():
    report = check_transition(broken.Thermostat())
    assert "not linear" in report["kind"].result


def test_a_bias_above_the_tolerance_is_told():
    # With friction 0.4 the variance is 1 / (1 + 0.2) to 1 - 0.2 times the target's.
    with pytest.raises(AssertionError, match="allow for the bias of such steps"):
        check_transition(broken.Thermostat(friction=0.4))
    check_transition(broken.Thermostat(friction=0.4), tolerance=0.3)


def test_a_thermostat_that_forgets_the_temperature_is_caught():
    # Tau = 1/4 comes first, where the variances should be four times those at 1.
    with pytest.raises(AssertionError, match="simulated law, tau = 0.25"):
        check_transition(broken.ThermostatWithoutTemperature())


def test_a_clipped_gradient_is_caught():
    with pytest.raises(AssertionError, match="simulated law"):
        check_transition(broken.Clipped(0.05))


@pytest.mark.parametrize("transition", [SGLD(0.05), SGHMC(0.05)], ids=repr)
def test_simulation_agrees_with_the_closed_form(transition):
    check_simulated_law(transition)


def test_simulation_catches_what_the_closed_form_does():
    with pytest.raises(AssertionError, match="simulated law"):
        check_simulated_law(broken.NoiseTooSmall())


def test_the_checks_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    check_transition(broken.Langevin())
    check_simulated_law(SGLD(0.05), steps=10, tolerance=1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_report_reads_as_a_table():
    text = repr(check_transition(SGLD(0.05)))
    first, *lines = text.splitlines()
    assert first == "SGLD(step_size=Constant(value=0.05)): 14 checks passed"
    assert len(lines) == 14
    column = lines[0].index("a NamedTuple")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_a_report_says_what_was_not_checked():
    with pytest.raises(KeyError, match="'law' was not checked; checked were"):
        check_contract(SGLD(0.05))["law"]


# -- the mechanisms of the package's other samplers, each with a mistake ---------------------------


@pytest.mark.parametrize("transition", mechanisms.WRONG, ids=lambda t: type(t).__name__)
def test_wrong_mechanisms_are_caught(transition):
    with pytest.raises(AssertionError, match=mechanisms.WRONG[transition]):
        check_transition(transition)


@pytest.mark.parametrize("name", mechanisms.HIDDEN)
def test_mistakes_that_hide_are_found_by_a_closer_look(name):
    right, wrong, options = mechanisms.HIDDEN[name]
    check_simulated_law(right, **options)
    with pytest.raises(AssertionError, match="simulated law"):
        check_simulated_law(wrong, **options)


def test_preconditioning_without_a_correction_is_told():
    # Its law is another one, as its docstring says, at any step size.
    with pytest.raises(AssertionError, match="simulated law"):
        check_transition(mechanisms.PSGLD(0.05))

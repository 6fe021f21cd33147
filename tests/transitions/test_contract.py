# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The contract of every transition, tested beside ``check_contract`` (which all of them pass in
``tests/testing/test_check_transition.py``). A new sampler joins with a line in ``samplers.py``; its
equation and its stationary law have a file of their own. The tests of steps are of the Euler steps
of equations (3a) and (3b).
"""

import pickle

import pytest
import torch
from samplers import ALL_TRANSITIONS, transition_classes

import pyro_aeb.transitions
from pyro_aeb.schedules import Constant, Cyclical, Polynomial
from pyro_aeb.transitions import SGHMC, SGLD, StepNumbers

TRANSITIONS = [
    SGLD(0.05),
    SGHMC(0.05),
    SGHMC(0.05, friction=0.4, gradient_noise=0.3),
    SGHMC(0.05, friction=1.0),
]
BY_NAME = sorted(transition_classes(), key=lambda kind: kind.__name__)
NAMES = {"Constant": Constant, "Cyclical": Cyclical, "Polynomial": Polynomial, "inf": float("inf")}
NUMBERS = StepNumbers(step_size=0.05, inverse_temperature=2.0)


@pytest.fixture(params=TRANSITIONS, ids=repr)
def transition(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


def run_steps(transition, position, steps=5, seed=1, noise=None):
    """The states of a few steps on a quadratic Q, ``gradient = -position``."""
    generator = torch.Generator().manual_seed(seed)
    state = transition.init(position)
    states = [state]
    for step in range(steps):
        z = torch.randn(position.shape, dtype=position.dtype, generator=generator)
        z = z if noise is None else noise[step]
        state = transition.step(state, -state.position, z, NUMBERS)
        states.append(state)
    return states


def test_every_transition_is_here():
    assert transition_classes() == {type(transition) for transition in ALL_TRANSITIONS}


def test_a_state_is_a_named_tuple_of_tensors_that_starts_with_the_position(transition, dtype):
    position = torch.randn(3, dtype=dtype)
    for state in run_steps(transition, position, steps=1):
        assert isinstance(state, tuple) and state._fields[0] == "position"
        for tensor in state:
            assert tensor.shape == position.shape and tensor.dtype == dtype
    assert torch.equal(transition.init(position).position, position)


def test_a_step_leaves_its_inputs_as_they_were(transition, dtype):
    state = run_steps(transition, torch.randn(7, dtype=dtype))[-1]  # with a momentum that is not 0
    gradient, noise = torch.randn(2, 7, dtype=dtype)
    inputs = [*state, gradient, noise]
    before = [tensor.clone() for tensor in inputs]
    after = transition.step(state, gradient, noise, NUMBERS)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    # Nor does the next state share memory with the noise, which the kernel draws anew in place.
    noise.zero_(), gradient.zero_()
    again = transition.step(state, before[-2], before[-1], NUMBERS)
    assert all(torch.equal(a, b) for a, b in zip(after, again, strict=True))


def test_the_same_noise_replays_a_run_to_the_last_digit(transition, dtype):
    position = torch.randn(33, dtype=dtype)
    first, second = run_steps(transition, position), run_steps(transition, position)
    other = run_steps(transition, position, seed=2)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(first[-1].position, other[-1].position)


def test_a_run_cut_in_two_is_the_same_run(transition):
    # All that a step needs is its state: nothing is hidden in the transition.
    noise = torch.randn(4, 5)
    whole = run_steps(transition, torch.ones(5), steps=4, noise=noise)
    state = pickle.loads(pickle.dumps(whole[2]))
    copy = pickle.loads(pickle.dumps(transition))
    for z in noise[2:]:
        state = copy.step(state, -state.position, z, NUMBERS)
    assert all(torch.equal(x, y) for x, y in zip(state, whole[-1], strict=True))


def test_a_leading_axis_of_chains_equals_separate_chains(transition, dtype):
    chains, size, steps = 3, 19, 5
    positions = torch.randn(chains, size, dtype=dtype)
    noise = torch.randn(steps, chains, size, dtype=dtype)
    together = run_steps(transition, positions, noise=noise)
    for c in range(chains):
        alone = run_steps(transition, positions[c], noise=noise[:, c])
        for a, b in zip(together, alone, strict=True):
            assert all(torch.equal(x[c], y) for x, y in zip(a, b, strict=True))


def test_at_rest_without_force_or_noise_nothing_moves(transition):
    position = torch.randn(4)
    state = transition.step(transition.init(position), *torch.zeros(2, 4), NUMBERS)
    assert torch.equal(state.position, position)


def test_the_force_pulls_along_the_gradient_and_grows_with_the_step_size(transition):
    gradient, still = torch.tensor([1.0, -2.0, 0.0]), torch.zeros(3)
    for size in (0.05, 0.1):
        state = transition.step(transition.init(still), gradient, still, StepNumbers(size, 2.0))
        assert torch.allclose(state.position, size * gradient)


def test_the_noise_is_that_of_the_inverse_temperature(transition):
    # Noise has variance proportional to step size / tau, so 16 times tau is a quarter of it.
    noise, still = torch.randn(3), torch.zeros(3)
    moves = [
        transition.step(transition.init(still), still, noise, numbers).position
        for numbers in (StepNumbers(0.05, 1.0), StepNumbers(0.05, 16.0), StepNumbers(0.2, 16.0))
    ]
    assert torch.allclose(moves[1], 0.25 * moves[0])
    assert torch.allclose(moves[2], 0.5 * moves[0])
    assert moves[0].abs().min() > 0.0


@pytest.mark.parametrize("of_ours", ALL_TRANSITIONS, ids=repr)
def test_pickles_compares_and_prints_as_the_call_that_makes_it(of_ours):
    copy = pickle.loads(pickle.dumps(of_ours))
    assert copy == of_ours and hash(copy) == hash(of_ours)
    assert eval(repr(of_ours), {**vars(pyro_aeb.transitions), **NAMES}) == of_ours


@pytest.mark.parametrize("kind", BY_NAME, ids=lambda kind: kind.__name__)
def test_is_frozen(kind):
    of_ours = next(transition for transition in ALL_TRANSITIONS if type(transition) is kind)
    with pytest.raises(AttributeError):
        of_ours.step_size = Constant(1.0)
    with pytest.raises(AttributeError):
        setattr(of_ours, next(iter(vars(of_ours))), None)


WITH_STEP_SIZE = {
    SGLD: {},
    SGHMC: {},
    pyro_aeb.transitions.SGNHT: {},
    pyro_aeb.transitions.BAOAB: {},
    pyro_aeb.transitions.PSGLD: {},
    pyro_aeb.transitions.HMC: {},
    pyro_aeb.transitions.TunedBAOAB: {},
    pyro_aeb.transitions.ContourSGLD: {"energies": (0.0, 1.0)},
}


@pytest.mark.parametrize("kind", WITH_STEP_SIZE, ids=lambda kind: kind.__name__)
class TestStepSize:
    def test_a_number_stands_for_a_constant(self, kind):
        one, other = (kind(size, **WITH_STEP_SIZE[kind]) for size in (0.1, Constant(0.1)))
        assert one.step_size == Constant(0.1) and one == other

    def test_a_schedule_is_kept(self, kind):
        schedule = Polynomial(1e-3, power=1 / 3)
        assert kind(step_size=schedule, **WITH_STEP_SIZE[kind]).step_size is schedule

    def test_anything_else_is_refused(self, kind):
        with pytest.raises(TypeError, match="step_size is None, expected a number or a schedule"):
            kind(None, **WITH_STEP_SIZE[kind])


@pytest.mark.parametrize(
    "kind", [k for k in BY_NAME if k not in WITH_STEP_SIZE], ids=lambda kind: kind.__name__
)
def test_a_transition_that_moves_with_another_has_its_schedule(kind):
    of_ours = next(transition for transition in ALL_TRANSITIONS if type(transition) is kind)
    assert of_ours.step_size is of_ours.inner.step_size
    for wrong in (SGLD, None, pyro_aeb.transitions.HMC(0.1)):
        with pytest.raises(TypeError, match="inner is .*expected a transition that moves by the"):
            kind(**{**vars(of_ours), "inner": wrong})


def test_the_step_takes_its_numbers_from_the_caller_not_from_its_own_schedule(transition):
    # The kernel reads the schedule; a step is a function of its arguments.
    gradient, still = torch.ones(2), torch.zeros(2)
    state = transition.step(transition.init(still), gradient, still, StepNumbers(0.5, 1.0))
    assert torch.equal(state.position, torch.full((2,), 0.5))

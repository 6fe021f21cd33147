# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
One contract, every transition. A new sampler joins with a line in ``TRANSITIONS``; what is its own
(its equation, its stationary law) is in a file of its own.
"""

import inspect
import pickle

import pytest
import torch

import pyro_aeb.transitions
from pyro_aeb.schedules import Constant, Polynomial
from pyro_aeb.transitions import SGHMC, SGLD, StepNumbers

TRANSITIONS = [
    SGLD(0.05),
    SGHMC(0.05),
    SGHMC(0.05, friction=0.4, gradient_noise=0.3),
    SGHMC(0.05, friction=1.0),
]
NUMBERS = StepNumbers(step_size=0.05, inverse_temperature=2.0)


@pytest.fixture(params=TRANSITIONS, ids=repr)
def transition(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


def run(transition, position, steps=5, seed=1, noise=None):
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
    exported = [getattr(pyro_aeb.transitions, name) for name in pyro_aeb.transitions.__all__]
    classes = {c for c in exported if inspect.isclass(c) and callable(getattr(c, "step", None))}
    assert classes - {pyro_aeb.transitions.Transition} == {type(t) for t in TRANSITIONS}


def test_a_state_is_a_named_tuple_of_tensors_that_starts_with_the_position(transition, dtype):
    position = torch.randn(3, dtype=dtype)
    for state in run(transition, position, steps=1):
        assert isinstance(state, tuple) and state._fields[0] == "position"
        for tensor in state:
            assert tensor.shape == position.shape and tensor.dtype == dtype
    assert torch.equal(transition.init(position).position, position)


def test_a_step_leaves_its_inputs_as_they_were(transition, dtype):
    state = run(transition, torch.randn(7, dtype=dtype))[-1]  # with a momentum that is not 0
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
    first, second = run(transition, position), run(transition, position)
    other = run(transition, position, seed=2)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(first[-1].position, other[-1].position)


def test_a_run_cut_in_two_is_the_same_run(transition):
    # All that a step needs is its state: nothing is hidden in the transition.
    noise = torch.randn(4, 5)
    whole = run(transition, torch.ones(5), steps=4, noise=noise)
    state = pickle.loads(pickle.dumps(whole[2]))
    copy = pickle.loads(pickle.dumps(transition))
    for z in noise[2:]:
        state = copy.step(state, -state.position, z, NUMBERS)
    assert all(torch.equal(x, y) for x, y in zip(state, whole[-1], strict=True))


def test_a_leading_axis_of_chains_equals_separate_chains(transition, dtype):
    chains, size, steps = 3, 19, 5
    positions = torch.randn(chains, size, dtype=dtype)
    noise = torch.randn(steps, chains, size, dtype=dtype)
    together = run(transition, positions, noise=noise)
    for c in range(chains):
        alone = run(transition, positions[c], noise=noise[:, c])
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


def test_pickles_compares_and_prints_as_the_call_that_makes_it(transition):
    copy = pickle.loads(pickle.dumps(transition))
    assert copy == transition and hash(copy) == hash(transition)
    assert eval(repr(transition), {**globals(), "Constant": Constant}) == transition


def test_is_frozen(transition):
    with pytest.raises(AttributeError):
        transition.step_size = Constant(1.0)


@pytest.mark.parametrize("kind", dict.fromkeys(type(t) for t in TRANSITIONS))
class TestStepSize:
    def test_a_number_stands_for_a_constant(self, kind):
        assert kind(0.1).step_size == Constant(0.1) and kind(0.1) == kind(Constant(0.1))

    def test_a_schedule_is_kept(self, kind):
        schedule = Polynomial(1e-3, power=1 / 3)
        assert kind(step_size=schedule).step_size is schedule

    def test_anything_else_is_refused(self, kind):
        with pytest.raises(TypeError, match="step_size is None, expected a number or a schedule"):
            kind(None)


def test_the_step_takes_its_numbers_from_the_caller_not_from_its_own_schedule(transition):
    # The kernel reads the schedule; a step is a function of its arguments.
    gradient, still = torch.ones(2), torch.zeros(2)
    state = transition.step(transition.init(still), gradient, still, StepNumbers(0.5, 1.0))
    assert torch.equal(state.position, torch.full((2,), 0.5))

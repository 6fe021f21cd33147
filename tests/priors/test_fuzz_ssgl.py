# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The SSGL distribution on arbitrary input: never NaN for parameters that make sense, an error that
names the parameter for all others. See :mod:`fuzzing` for how many examples are tried.
"""

from __future__ import annotations

import math

import pytest
import torch
from fuzzing import junk, not_numbers
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from refusals import count_refusal

from pyro_aeb import SSGL

NAMES = ("v0", "v1", "delta", "sigma")
DTYPES = (torch.float32, torch.float64)

# Ten orders of magnitude on either side of 1: farther out products of two leave single precision.
scales = st.floats(-10.0, 10.0).map(lambda x: 10.0**x)
probabilities = st.one_of(st.sampled_from([0.0, 1.0, 1e-30, 1 - 1e-7]), st.floats(0.0, 1.0))
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-40, 1e30, -3e38, torch.finfo(torch.float32).tiny]),
    st.floats(-1e3, 1e3),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def convert_bits(name: str) -> st.SearchStrategy[float]:
    return probabilities if name == "delta" else scales


@st.composite
def cases(draw):
    """Parameters, numbers or tensors of shapes that broadcast, and values that fit."""
    shapes = draw(mutually_broadcastable_shapes(num_shapes=5, max_dims=3, max_side=3))
    dtype = draw(st.sampled_from(DTYPES))

    def tensor(shape, elements):
        flat = draw(st.lists(elements, min_size=(n := math.prod(shape)), max_size=n))
        return torch.tensor(flat, dtype=dtype).reshape(shape)

    parameters = {}
    for name, shape in zip(NAMES, shapes.input_shapes, strict=False):
        if draw(st.booleans()):
            parameters[name] = tensor(shape, convert_bits(name))
        else:
            parameters[name] = draw(convert_bits(name))
    value = tensor(shapes.input_shapes[4], values)
    return parameters, value


def shape_of(*tensors) -> torch.Size:
    return torch.broadcast_shapes(*(t.shape if torch.is_tensor(t) else () for t in tensors))


@given(cases())
def test_a_density_is_never_nan(case):
    parameters, value = case
    prior = SSGL(**parameters, validate_args=True)
    assert prior.batch_shape == shape_of(*parameters.values())
    found = prior.log_prob(value)
    assert found.shape == shape_of(value, *parameters.values())
    assert not found.isnan().any() and not (found == math.inf).any()
    inclusion = prior.inclusion(value)
    assert inclusion.shape == found.shape
    assert ((inclusion >= 0.0) & (inclusion <= 1.0)).all()
    cdf = prior.cdf(value)
    assert ((cdf >= 0.0) & (cdf <= 1.0)).all()


@given(cases())
def test_a_derivative_is_never_nan_where_the_density_is_finite(case):
    parameters, value = case
    prior = SSGL(**parameters, validate_args=True)
    value = value.expand(shape_of(value, *parameters.values())).clone().requires_grad_()
    found = prior.log_prob(value)
    found.sum().backward()
    representable = found.detach().isfinite() & (2 * value.detach() / prior.sigma).isfinite()
    assert not value.grad[representable].isnan().any()


@given(cases(), st.integers(0, 2**32))
def test_a_sample_is_never_nan(case, seed):
    parameters, _ = case
    prior = SSGL(**parameters)
    torch.manual_seed(seed)
    for draw in (prior.sample, prior.rsample):
        for shape in ((), (2,), (2, 0), (3, 1)):
            found = draw(shape)
            assert found.shape == torch.Size(shape) + prior.batch_shape
            assert found.isfinite().all()


@given(cases(), st.lists(st.integers(0, 3), max_size=4))
def test_expanding_is_broadcasting_or_an_error(case, shape):
    parameters, value = case
    prior = SSGL(**parameters)
    try:
        fits = torch.broadcast_shapes(prior.batch_shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        with pytest.raises(ValueError, match="Cannot expand SSGL of batch_shape") as info:
            prior.expand(shape)
        count_refusal(info.value)
        return
    wide = prior.expand(shape)
    assert wide.batch_shape == torch.Size(shape)
    assert wide.sample().shape == torch.Size(shape)
    try:
        both = torch.broadcast_shapes(shape, value.shape)
    except RuntimeError:
        return
    expected = prior.log_prob(value.expand(both))
    torch.testing.assert_close(wide.log_prob(value), expected, rtol=0, atol=0)


bad_scales = st.one_of(
    st.floats(max_value=0.0), st.sampled_from([math.nan, math.inf, -math.inf, -1e-45])
)
bad_probabilities = st.one_of(
    st.floats(max_value=-1e-30), st.floats(min_value=1.0 + 1e-6), st.just(math.nan)
)


@given(st.data(), st.sampled_from(NAMES), st.booleans(), st.sampled_from(DTYPES))
def test_a_parameter_out_of_range_is_named(data, name, as_tensor, dtype):
    parameters = {n: data.draw(convert_bits(n)) for n in NAMES}
    bad = data.draw(bad_probabilities if name == "delta" else bad_scales)
    if as_tensor:
        good = data.draw(st.lists(convert_bits(name), max_size=3))
        at = data.draw(st.integers(0, len(good)))
        bad = torch.tensor([*good[:at], bad, *good[at:]], dtype=dtype)
        assume(name != "delta" or not bool(((bad >= 0) & (bad <= 1)).all()))
    expected = r"in \[0, 1\]" if name == "delta" else "positive and finite"
    with pytest.raises(ValueError, match=rf"SSGL expects {name} to be {expected}") as info:
        SSGL(**{**parameters, name: bad}, validate_args=True)
    count_refusal(info.value)


whole_or_complex = st.sampled_from([torch.int64, torch.bool, torch.complex64]).map(
    lambda dtype: torch.ones(2, dtype=dtype)
)


@given(st.sampled_from(NAMES), st.one_of(not_numbers, whole_or_complex))
def test_a_parameter_that_is_no_number_is_named(name, bad):
    assume(not (torch.is_tensor(bad) and bad.is_floating_point()))
    parameters = {"v0": 0.1, "v1": 10.0, "delta": 0.5, "sigma": 1.0, name: bad}
    with pytest.raises(TypeError, match=f"SSGL expects {name} to be a number or a") as info:
        SSGL(**parameters)
    count_refusal(info.value)


@given(st.fixed_dictionaries({name: junk for name in NAMES}))
def test_junk_is_an_error_or_a_distribution(parameters):
    try:
        prior = SSGL(**parameters, validate_args=True)
        prior.log_prob(prior.sample())
    except (TypeError, ValueError) as error:
        assert "SSGL" in str(error), error
        count_refusal(error)


@given(st.lists(st.lists(st.integers(2, 4), max_size=2), min_size=4, max_size=4))
def test_shapes_that_do_not_broadcast_are_an_error(shapes):
    parameters = {n: torch.full(s, 0.5) for n, s in zip(NAMES, shapes, strict=True)}
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        with pytest.raises(
            ValueError, match="SSGL expects .* to broadcast, but found shapes"
        ) as info:
            SSGL(**parameters)
        count_refusal(info.value)
    else:
        assert SSGL(**parameters).log_prob(torch.zeros(())).isfinite().all()

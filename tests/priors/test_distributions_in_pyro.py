# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""SSGL as a part of Pyro: inclusion probabilities, shapes, provenance and validation."""

from __future__ import annotations

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from ssgl_references import PARAMETERS, mixture_terms
from torch import Tensor
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_aeb.priors import SSGL

# Inclusion


@pytest.mark.parametrize("delta", [1e-8, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("v0, v1, sigma", [(0.1, 10.0, 1.7), (0.005, 1e-5, 0.3), (1.0, 0.1, 1.0)])
def test_inclusion_is_bayes_rule(v0: float, v1: float, delta: float, sigma: float) -> None:
    value = sigma * math.sqrt(v1) * torch.linspace(-5, 5, 101).double()
    laplace, gaussian = mixture_terms(value, v0, v1, delta, sigma)
    actual = SSGL(v0, v1, delta, sigma).inclusion(value)
    torch.testing.assert_close(actual, gaussian / (laplace + gaussian), rtol=1e-9, atol=1e-300)
    single = SSGL(v0, v1, delta, sigma).inclusion(value.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), actual, rtol=2e-5, atol=1e-30)
    tensors = torch.tensor([v0, v1, delta, sigma], dtype=torch.float64)
    torch.testing.assert_close(SSGL(*tensors).inclusion(value), actual)


def test_inclusion_in_single_precision_where_densities_underflow() -> None:
    # At u = 200 v0 = 20 both densities are 0 in single precision, exp(-200) = 1e-87 and
    # exp(-20^2 / 2) = 1e-87. With v1 = 1 the logit is log(2 v0) - log(2 pi) / 2 + 200 - 200.
    value = torch.tensor(20.0)
    assert dist.Laplace(0.0, 0.1).log_prob(value).exp() == 0
    expected = 1 / (1 + math.exp(-(math.log(0.2) - 0.5 * math.log(2 * math.pi))))
    assert SSGL(0.1, 1.0, 0.5).inclusion(value).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-38, 1.0, 1e10, 1e20, 3e38, math.inf])
def test_inclusion_is_never_nan(value: float, as_tensor: bool) -> None:
    b = torch.tensor([value, -value])
    for v0, v1 in [(0.1, 10.0), (0.005, 1e-5)]:
        for delta, expected in [(0.0, 0.0), (0.5, None), (1.0, 1.0)]:
            for sigma in [1e-6, 1.0, 1e6]:
                d = torch.tensor(delta) if as_tensor else delta
                rho = SSGL(v0, v1, d, sigma).inclusion(b)
                assert ((rho >= 0) & (rho <= 1)).all()
                if expected is not None:
                    assert (rho == expected).all()


def test_inclusion_keeps_nan() -> None:
    assert SSGL(0.1, 10.0, 0.5, validate_args=False).inclusion_logit(torch.tensor(math.nan)).isnan()


# Shapes


def test_parameters_broadcast() -> None:
    d = SSGL(0.1, torch.full((3, 1), 10.0), torch.rand(4), torch.tensor(2.0))
    assert d.batch_shape == (3, 4) and d.event_shape == ()
    for name in PARAMETERS:
        assert getattr(d, name).shape == (3, 4)
    assert d.sample().shape == d.rsample().shape == (3, 4)
    assert d.sample((5,)).shape == (5, 3, 4)
    for statistic in (d.mean, d.variance, d.entropy(), d.laplace.scale, d.gaussian.scale):
        assert statistic.shape == (3, 4)
    for f in (d.log_prob, d.cdf, d.icdf, d.inclusion):
        assert f(torch.tensor(0.2)).shape == (3, 4)
        assert f(torch.rand(5, 1, 1)).shape == (5, 3, 4)


def test_numbers_take_after_the_tensors() -> None:
    d = SSGL(0.1, 10.0, torch.tensor(0.5, dtype=torch.float64))
    assert d.v0.dtype == d.sigma.dtype == d.sample().dtype == torch.float64
    assert d.v0 == 0.1  # not the single precision 0.1
    assert SSGL(0.1, 10, 1, 2).sigma.dtype == torch.get_default_dtype()


def test_chains_lead() -> None:
    delta, sigma = torch.rand(2, 1), torch.rand(2, 1)
    d = SSGL(0.1, 10.0, delta, sigma).expand((2, 7))
    value = torch.randn(2, 7)
    for chain in range(2):
        alone = SSGL(0.1, 10.0, delta[chain, 0], sigma[chain, 0])
        for f in ("log_prob", "inclusion", "cdf"):
            expected = getattr(alone, f)(value[chain])
            torch.testing.assert_close(getattr(d, f)(value)[chain], expected)


def test_expand() -> None:
    delta = torch.rand(3, 1)
    d = SSGL(0.1, 10.0, delta, validate_args=False)
    big = d.expand((2, 3, 4))
    assert big.batch_shape == (2, 3, 4) and type(big) is SSGL
    assert big.given["delta"] is delta and big.given["v0"] == 0.1
    assert big._validate_args is False and d.expand((3, 1))._validate_args is False
    value = torch.randn(2, 3, 4)
    torch.testing.assert_close(big.log_prob(value), d.log_prob(value))
    torch.testing.assert_close(big.entropy(), d.entropy().expand(2, 3, 4))
    small = SSGL(0.1, 10.0, 0.5).expand((2, 1))
    for f in (small.log_prob, small.cdf, small.icdf, small.inclusion):
        assert f(torch.tensor(0.2)).shape == (2, 1)
        assert f(torch.rand(3)).shape == (2, 3)
    # An expanded distribution draws its own numbers everywhere.
    assert big.sample().unique().numel() == 24
    for shape in [(4, 1), (1,), (), (2, 2, 1)]:
        with pytest.raises(ValueError, match="Cannot expand SSGL of batch_shape \\(3, 1\\)"):
            d.expand(shape)


def test_to_event() -> None:
    d = SSGL(0.1, 10.0, torch.rand(3)).expand((2, 3)).to_event(1)
    assert d.batch_shape == (2,) and d.event_shape == (3,)
    value = d.rsample()
    torch.testing.assert_close(d.log_prob(value), d.base_dist.log_prob(value).sum(-1))


class CountOperations(TorchDispatchMode):
    """Counts the tensor operations that are run."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("delta, sigma", [(torch.tensor(0.1), torch.tensor(2.0)), (0.1, 2.0)])
def test_construction_and_expansion_run_no_operation(delta: Tensor, sigma: Tensor) -> None:
    with CountOperations() as counter:
        d = SSGL(0.1, 10.0, delta, sigma, validate_args=False).expand((1000,)).to_event(1)
    assert counter.count == 0
    with counter:
        d.log_prob(torch.zeros(1000))
    assert counter.count > 0


# Provenance, pickling, printing


def track(x: float | Tensor, name: str) -> ProvenanceTensor:
    return ProvenanceTensor(torch.as_tensor(x), frozenset({name}))


def test_provenance_is_kept_by_parameter() -> None:
    d = SSGL(0.1, track(10.0, "b"), track(torch.rand(3), "c"), track(2.0, "d") ** 2)
    expected = {
        "v0": frozenset(),
        "v1": frozenset("b"),
        "delta": frozenset("c"),
        "sigma": frozenset("d"),
    }
    assert d.parameter_provenance == expected
    assert d.expand((2, 3)).parameter_provenance == expected
    assert d.expand((2, 3)).to_event(2).base_dist.parameter_provenance == expected
    assert d.to_event(1).expand((5,)).base_dist.parameter_provenance == expected
    assert d.mask(False).base_dist.parameter_provenance == expected


def test_everything_takes_provenance() -> None:
    plain = [torch.tensor(x) for x in (0.1, 10.0, 0.3, 2.0)]
    d = SSGL(*map(track, plain, PARAMETERS)).expand((3,))
    same = SSGL(*plain).expand((3,))
    value = torch.tensor([0.1, 0.5, 0.9])
    for name in ("log_prob", "cdf", "icdf", "inclusion"):
        tracked = getattr(d, name)(value)
        assert get_provenance(tracked) == frozenset(PARAMETERS)
        assert torch.equal(detach_provenance(tracked), getattr(same, name)(value))
    for sample in (d.sample(), d.rsample(), d.rsample((2,)), d.variance, d.entropy()):
        assert get_provenance(sample) == frozenset(PARAMETERS)
    assert repr(d) == repr(same)
    with pytest.raises(ValueError, match="v0 to be positive and finite, but found -1"):
        SSGL(track(-1.0, "v0"), 1.0, 0.5, validate_args=True)


def test_rsample_gradient_passes_provenance() -> None:
    sigma = torch.tensor(2.0, requires_grad=True)
    value = detach_provenance(SSGL(0.1, 10.0, 0.5, track(sigma, "sigma")).rsample((4,)))
    (slope,) = grad(value.sum(), sigma)
    torch.testing.assert_close(slope, value.detach().sum() / 2.0)


def regression(x: Tensor) -> None:
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(3.0, 2.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 5.0))
    with pyro.plate("features", x.shape[-1]):
        pyro.sample("beta", SSGL(0.1, 10.0, delta, sigma2.sqrt()))
    both = SSGL(0.1, 10.0, delta, sigma2.sqrt()).expand((4,)).to_event(1)
    with pyro.plate("layers", 6, subsample_size=2):
        pyro.sample("gamma", both)


def test_provenance_in_a_model_with_plates() -> None:
    with TrackProvenance():
        nodes = poutine.trace(regression).get_trace(torch.zeros(5, 3)).nodes
    for fn in (nodes["beta"]["fn"], nodes["gamma"]["fn"].base_dist):
        assert fn.parameter_provenance["delta"] == frozenset({"delta"})
        assert fn.parameter_provenance["sigma"] == frozenset({"sigma2"})
        assert fn.parameter_provenance["v0"] == frozenset()
    assert nodes["beta"]["fn"].batch_shape == (3,)
    assert nodes["gamma"]["fn"].batch_shape == (2,)


def test_plates_in_a_model() -> None:
    trace = poutine.trace(regression).get_trace(torch.zeros(5, 3))
    trace.compute_log_prob()
    nodes = trace.nodes
    sigma, delta = nodes["sigma2"]["value"].sqrt(), nodes["delta"]["value"]
    alone = SSGL(0.1, 10.0, delta, sigma)
    torch.testing.assert_close(
        nodes["beta"]["log_prob"], alone.log_prob(nodes["beta"]["value"]), rtol=1e-6, atol=1e-6
    )
    # A plate with 2 of 6 scales by 3.
    expected = 3 * alone.log_prob(nodes["gamma"]["value"]).sum()
    torch.testing.assert_close(nodes["gamma"]["log_prob_sum"], expected)


@pytest.mark.parametrize("delta", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.4])])
def test_pickle(delta: float | Tensor) -> None:
    d = SSGL(0.1, 10.0, delta, validate_args=False).expand((3, 2))
    copy = pickle.loads(pickle.dumps(d))
    value = torch.randn(3, 2)
    assert torch.equal(copy.log_prob(value), d.log_prob(value))
    assert copy.batch_shape == (3, 2) and copy._validate_args is False
    assert type(copy.given["v0"]) is float


def test_repr() -> None:
    assert repr(SSGL(0.1, 10.0, torch.tensor(0.25))) == (
        "SSGL(v0: 0.1, v1: 10, delta: 0.25, sigma: 1)"
    )
    assert repr(SSGL(0.1, 10.0, torch.rand(3)).expand((2, 3))) == (
        "SSGL(v0: 0.1, v1: 10, delta: torch.Size([3]), sigma: 1, batch_shape: (2, 3))"
    )


# Validation

GOOD = {"v0": 0.1, "v1": 10.0, "delta": 0.5, "sigma": 1.0}


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("v0", 0.0, r"v0 to be positive and finite, but found 0: .*scale sigma \* v0"),
        ("v0", -0.1, r"v0 to be positive and finite, but found -0\.1: "),
        ("v1", math.inf, r"v1 to be positive and finite, but found inf: .*variance sigma\*\*2"),
        ("v1", torch.tensor([1.0, -1.0, 0.0]), r"v1 .* found -1 \(2 of 3 values\)"),
        ("delta", 1.5, r"delta to be in \[0, 1\], but found 1\.5: .*sigmoid"),
        ("delta", torch.tensor(-0.5), r"delta to be in \[0, 1\], but found -0\.5: "),
        ("sigma", math.nan, r"sigma to be positive and finite, but found nan: .*sigma2\.sqrt\(\)"),
        ("sigma", torch.tensor(-2.0), r"sigma to be positive and finite, but found -2: "),
    ],
)
def test_bad_parameters(name: str, value: float | Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^SSGL expects {message}"):
        SSGL(**{**GOOD, name: value}, validate_args=True)
    SSGL(**{**GOOD, name: value}, validate_args=False)


@pytest.mark.parametrize("value", [[0.1], None, torch.tensor(1), "0.1"])
def test_parameters_of_another_type(value: object) -> None:
    with pytest.raises(TypeError, match="SSGL expects v0 to be a number or a floating point"):
        SSGL(value, 10.0, 0.5, validate_args=False)


def test_validation_follows_the_default() -> None:
    with pyro.validation_enabled(False):
        d = SSGL(-0.1, 10.0, 0.5)
    assert d._validate_args is False
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="v0"):
        SSGL(-0.1, 10.0, 0.5)


def test_bad_values() -> None:
    d = SSGL(**GOOD, validate_args=True)
    for f in (d.log_prob, d.cdf, d.inclusion):
        with pytest.raises(ValueError, match="support"):
            f(torch.tensor(math.nan))
    with pytest.raises(ValueError, match="not broadcastable"):
        d.expand((3,)).log_prob(torch.zeros(4))


def test_ends_of_delta_are_good() -> None:
    assert SSGL(0.1, 10.0, torch.tensor([0.0, 1.0]), validate_args=True).batch_shape == (2,)

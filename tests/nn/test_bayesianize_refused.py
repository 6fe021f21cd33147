# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Modules and options that bayesianize refuses, and calls that a network refuses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from modules import Convolutions, HandWritten, make_bayesian, perceptron
from pyro import poutine
from pyro.infer import Predictive
from torch import nn

from pyro_aeb import ModelError

N = 6


def complex_layer() -> nn.Module:
    return nn.Linear(2, 2, dtype=torch.complex64)


def make_module_named(name: str) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_parameter(name, nn.Parameter(torch.zeros(2)))
    return module


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (perceptron, {"sparse": "conv*"}, r"pattern 'conv\*' finds none.*\['0', '2'\]"),
        (perceptron, {"sparse": ["0", "first"]}, "pattern 'first' finds none"),
        (Convolutions, {"sparse": "norm"}, r"only \['norm'\], without one, expected a layer with"),
        (perceptron, {"sparse": lambda name, layer: False}, "a function, finds none"),
        (nn.Tanh, {}, "Tanh has 0 parameters.*nothing to sample"),
        (lambda: perceptron().requires_grad_(False), {}, "4 parameters and none of them requires"),
        (complex_layer, {}, "'weight' has dtype torch.complex64, expected a real"),
        (lambda: make_module_named("sigma2"), {}, r"parameters named \['sigma2'\]"),
        (lambda: make_module_named("delta"), {}, r"parameters named \['delta'\]"),
        (lambda: nn.LazyLinear(3), {}, "'weight' of LazyLinear has no shape yet.*one batch"),
        (HandWritten, {}, "submodule 'first' .*PyroSample attributes.*as it is"),
        (lambda: make_bayesian(perceptron()), {}, "BayesianModule.*as it is"),
    ],
)
def test_modules_that_cannot_be_sampled(make, options, message):
    with pytest.raises(ModelError, match=message):
        make_bayesian(make(), **options)


@pytest.mark.parametrize(
    ("error", "option", "message"),
    [
        (ValueError, {"v0": 0.0}, "v0 is 0.0, expected a finite number > 0"),
        (ValueError, {"v1": -1.0}, "v1 is -1.0, expected"),
        (ValueError, {"v1": float("inf")}, "v1 is inf, expected"),
        (TypeError, {"v0": torch.ones(2)}, "v0 is tensor.*expected a number"),
        (ValueError, {"dense_scale": 0.0}, "dense_scale is 0.0, expected"),
        (ValueError, {"delta": 1.5}, r"delta is 1.5, expected a number in \[0, 1\]"),
        (ValueError, {"delta": float("nan")}, "delta is nan, expected"),
        (TypeError, {"delta": dist.Normal(0.0, 1.0)}, "expected a pyro.distributions.Beta"),
        (ValueError, {"delta": dist.Beta(torch.ones(2), 1.0)}, r"shape \(2,\), expected one"),
        (ValueError, {"sigma2": 0.0}, "sigma2 is 0.0, expected"),
        (TypeError, {"sigma2": dist.Gamma(1.0, 1.0)}, "expected a pyro.distributions.InverseGamma"),
        (TypeError, {"sparse": 3}, "sparse is 3, expected a pattern"),
        (TypeError, {"sparse": nn.Linear}, r"lambda name, layer: isinstance"),
        (TypeError, {"sparse": [nn.Linear]}, "expected a pattern"),
    ],
)
def test_options_that_make_no_sense(error, option, message):
    with pytest.raises(error, match=message):
        make_bayesian(perceptron(), **option)


def test_no_module():
    with pytest.raises(TypeError, match="expected a torch.nn.Module"):
        make_bayesian(torch.tanh)


@pytest.mark.parametrize("sparse", [[], None])
def test_a_call_inside_a_plate(sparse):
    net, x = make_bayesian(perceptron(), sparse), torch.randn(N, 4)
    with pytest.raises(ModelError, match="shape .*call the network outside of plates"):
        with poutine.trace(), pyro.plate("data", N):
            net(x)


def test_a_call_on_several_draws_at_once():
    net, x = make_bayesian(perceptron()), torch.randn(N, 4)
    draws = {"sigma2": torch.ones(2), "0.delta": torch.ones(2)}
    predictive = Predictive(net, draws, parallel=True)
    with pytest.raises(ModelError, match=r"'sigma2' .*shape \(2,.*\(parallel=False\)"):
        predictive(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_autocast(dtype):
    with pytest.raises(ModelError, match=f"{dtype}.*float32 or float64.*torch.autocast"):
        make_bayesian(perceptron().to(dtype))


def test_weights_that_are_not_finite():
    module = perceptron()
    with torch.no_grad():
        module[2].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="'2.weight' has 1 non-finite of 15 numbers"):
        make_bayesian(module)


def test_parameters_of_two_kinds():
    module = perceptron()
    module[2].double()
    with pytest.raises(ModelError, match="not of one kind.*float32.*float64.*module.to"):
        make_bayesian(module)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"sparse": True}])
def test_embeddings_with_weights_of_their_own_mind(options):
    module = torch.nn.Sequential(torch.nn.Embedding(5, 3, **options), torch.nn.Linear(3, 2))
    with pytest.raises(ModelError, match="'0' is an embedding with max_norm or sparse=True"):
        make_bayesian(module)


def test_compiled_modules():
    with pytest.raises(ModelError, match="is compiled.*that it was compiled from"):
        make_bayesian(torch.compile(perceptron()))
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="is compiled.*that it was compiled from"):
        make_bayesian(scripted)

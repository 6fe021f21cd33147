# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Traces of a model find its sites and have no side effects."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import DenseNetwork, eight_schools, linear_data, sparse_regression
from pyro.infer.autoguide.initialization import init_to_sample, init_to_value
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from torch import nn

from pyro_aeb import SSGL, ModelError
from pyro_aeb.model.initial_values import draw_initial_values, init_in_spikes, init_to_default
from pyro_aeb.model.tracing import Tracer, trace_provenance, trace_sites
from pyro_aeb.priors import Group, SpikeAndSlabStudent

X, Y = linear_data()


def random_states():
    """The states of the three global random number generators."""
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def assert_same_states(before, after) -> None:
    assert torch.equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2] == after[2]


def uses_every_generator():
    random.random()
    np.random.rand()
    return pyro.sample("x", dist.Normal(torch.randn(()), 1.0))


def failing_model():
    torch.randn(3)
    raise RuntimeError("no such file")


# Sites


def test_sites_come_in_the_order_of_the_model():
    sites = trace_sites(sparse_regression, (X, Y), {"batch_size": 5}, {})
    assert list(sites) == ["sigma2", "delta", "features", "beta", "data", "y"]
    assert [name for name, site in sites.items() if site["is_observed"]] == ["y"]


def test_latent_sites_take_the_given_values_and_the_others_a_feasible_one():
    beta = torch.tensor([1.0, 2.0, 3.0])
    sites = trace_sites(sparse_regression, (X, Y), {}, {"beta": beta, "delta": torch.tensor(0.3)})
    assert torch.equal(sites["beta"]["value"], beta)
    assert sites["delta"]["value"] == 0.3
    assert sites["sigma2"]["value"] == 1.0  # 0 in unconstrained space, exp(0)
    torch.testing.assert_close(detach_provenance(sites["y"]["fn"].loc), X @ beta)


def test_parameters_tell_what_they_were_computed_from_and_values_do_not():
    sites = trace_provenance(Tracer(sparse_regression, (X, Y), {}))
    provenance = sites["beta"]["fn"].parameter_provenance
    assert provenance["delta"] == {"delta"} and provenance["sigma"] == {"sigma2"}
    assert not provenance["v0"] and not provenance["v1"]
    assert get_provenance(sites["y"]["fn"].loc) == {"beta", "sigma2"}  # Normal broadcasts them
    plain = trace_sites(sparse_regression, (X, Y), {}, {})
    assert not any(isinstance(site["value"], ProvenanceTensor) for site in plain.values())


def test_a_deterministic_site_hides_no_link():
    sites = trace_provenance(Tracer(eight_schools, (torch.ones(8), torch.zeros(8)), {}))
    assert get_provenance(sites["y"]["fn"].loc) == {"mu", "tau", "eta"}


def test_two_traces_have_the_same_random_numbers():
    def model():
        with pyro.plate("data", 100, subsample_size=10) as i:
            pyro.sample("y", dist.Normal(torch.randn(()), 1.0), obs=i.float())

    first, second = (trace_sites(model, (), {}, {}) for _ in range(2))
    assert torch.equal(first["data"]["value"], second["data"]["value"])
    assert torch.equal(first["y"]["fn"].loc, second["y"]["fn"].loc)


def test_a_trace_records_no_gradient():
    weight = torch.ones(3, requires_grad=True)

    def model():
        pyro.sample("y", dist.Normal(weight.sum(), 1.0), obs=torch.zeros(()))

    assert not trace_sites(model, (), {}, {})["y"]["fn"].loc.requires_grad


def test_a_discrete_latent_is_refused():
    def model():
        pyro.sample("z", dist.Categorical(torch.ones(3)))

    with pytest.raises(ModelError, match=r"'z' ~ Categorical is a discrete .* sum it out"):
        trace_sites(model, (), {}, {})


# Side effects


def test_random_number_generators_are_as_before():
    before = random_states()
    trace_sites(uses_every_generator, (), {}, {})
    assert_same_states(before, random_states())


def test_random_number_generators_are_as_before_even_when_the_model_raises():
    before = random_states()
    with pytest.raises(RuntimeError, match="no such file"):
        trace_sites(failing_model, (), {}, {})
    assert_same_states(before, random_states())


def copy_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same_buffers(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = dict(module.named_buffers())
    assert before.keys() == after.keys() and before
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(
    "run", [trace_sites, draw_initial_values], ids=["trace_sites", "draw_initial_values"]
)
def test_running_averages_are_as_before(run):
    network = DenseNetwork()
    network.norm(torch.randn(8, 4) + 3.0)  # away from the buffers' first values
    before = copy_buffers(network)
    last = {} if run is trace_sites else init_to_sample
    run(network, (X, Y), {}, last)
    assert_same_buffers(network, before)
    assert network.training
    network.norm(torch.randn(8, 4))  # a run of its own moves them
    assert not torch.equal(network.norm.running_mean, before["norm.running_mean"])


def test_running_averages_are_as_before_even_when_the_model_raises():
    norm = nn.BatchNorm1d(3)
    before = copy_buffers(norm)

    def model():
        norm(X)
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        trace_sites(model, (), {}, {})
    assert_same_buffers(norm, before)


def test_buffers_that_a_module_replaces_are_as_before():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1.0
            return x

    counter = Counter()
    counter(X)

    def model():
        counter(counter(X))

    trace_sites(model, (), {}, {})
    assert counter.calls == 1.0


def test_the_parameter_store_stays_empty_for_models_without_parameters():
    trace_sites(sparse_regression, (X, Y), {}, {})
    assert not pyro.get_param_store()


# First values


def test_default_first_values():
    n = 10_000

    def model():
        pyro.sample("sigma2", dist.InverseGamma(3.0, 1.0))
        pyro.sample("delta", dist.Beta(1.0, 9.0).expand([2]).to_event(1))
        pyro.sample("beta", SSGL(0.1, 10.0, 0.5).expand([n]).to_event(1))
        pyro.sample("other", dist.HalfNormal(1.0).expand([n]).to_event(1))

    values = draw_initial_values(model, (), {}, init_to_default)
    assert values["sigma2"] == 1.0 and (values["delta"] == 0.5).all()  # exp(0), sigmoid(0)
    # N(0, 0.1^2): 5 standard errors of the mean, 0.1 / sqrt(n), and of the sd, 0.1 / sqrt(2 n).
    assert abs(values["beta"].mean()) < 5 * 0.1 / n**0.5
    assert abs(values["beta"].std() - 0.1) < 5 * 0.1 / (2 * n) ** 0.5
    # Uniform(-2, 2) in unconstrained space: mean 0, sd 2 / sqrt(3).
    log = values["other"].log()
    assert log.abs().max() <= 2.0
    assert abs(log.mean()) < 5 * (2 / 3**0.5) / n**0.5
    assert abs(log.std() - 2 / 3**0.5) < 5 * (2 / 3**0.5) / (2 * n) ** 0.5


def test_first_values_in_the_spikes():
    """Normal, of the sd of the spikes where that is below 0.1; what is given stays."""
    n, given = 10_000, torch.full((3,), 5.0)

    def model():
        sigma = pyro.sample("sigma2", dist.InverseGamma(3.0, 1.0)).sqrt()
        pyro.sample("narrow", SSGL(0.005, 10.0, 0.5, 2.0 * sigma).expand([n]).to_event(1))
        pyro.sample("wide", SSGL(0.5, 10.0, 0.5, sigma).expand([n]).to_event(1))
        group = Group(SpikeAndSlabStudent(0.01, 1.0, 1.0, 0.5, sigma).expand([n, 2]))
        pyro.sample("group", group.to_event(1))
        prior = SSGL(0.005, 10.0, 0.5, sigma).expand([3]).to_event(1)
        pyro.sample("given", prior, infer={"init_value": given})

    values = draw_initial_values(model, (), {}, init_in_spikes)
    assert values["sigma2"] == 1.0 and torch.equal(values["given"], given)
    # sigma v0 sqrt(2) of a Laplace; the Student's slab has no variance.
    for name, sd in (("narrow", 0.01 * 2**0.5), ("wide", 0.1), ("group", 0.01 * 2**0.5)):
        error = 5 * sd / (2 * values[name].numel()) ** 0.5
        assert abs(values[name].std() - sd) < error, name


@pytest.mark.parametrize(("size", "batch"), [(2, 1), (3, 2), (10, 9), (1000, 40), (10**9, 100)])
def test_a_trace_takes_data_from_all_over_a_plate_without_a_permutation(size, batch, monkeypatch):
    """Of two million data a permutation takes 0.1 s, and setup makes some ten traces."""

    def model():
        with pyro.plate("data", size, subsample_size=batch):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(batch))

    monkeypatch.delattr(torch, "randperm")
    indices = Tracer(model, (), {})({})["data"]["value"].sort().values
    assert 0 <= indices[0] and indices[-1] < size and (indices.diff() > 0).all()
    gaps = torch.cat([indices[:1], indices.diff(), size - indices[-1:]])
    assert gaps.max() <= 1 + 3 * size / batch


def test_the_default_is_a_strategy_like_pyros():
    assert init_to_default() is init_to_default


def test_first_values_by_a_strategy_of_pyros():
    beta = torch.tensor([1.0, -2.0, 0.5])
    strategy = init_to_value(values={"beta": beta}, fallback=init_to_sample)
    values = draw_initial_values(sparse_regression, (X, Y), {"batch_size": 4}, strategy)
    assert values.keys() >= {"sigma2", "delta", "beta"}
    assert torch.equal(values["beta"], beta)
    pyro.set_rng_seed(3)
    drawn = draw_initial_values(sparse_regression, (X, Y), {}, init_to_sample)
    pyro.set_rng_seed(3)
    assert drawn["sigma2"] == dist.InverseGamma(1.5, 2.0).sample()


def test_first_values_are_copies():
    beta = torch.zeros(3)
    strategy = init_to_value(values={"beta": beta})
    draw_initial_values(sparse_regression, (X, Y), {}, strategy)["beta"].add_(1.0)
    assert (beta == 0.0).all()


NO_COMPILER = """
import sys
import pyro, pyro.distributions as dist, torch
import pyro_aeb as aeb

def model():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

aeb.AEBKernel(model, aeb.SGLD(1e-3)).setup(0)
print("torch._dynamo" in sys.modules)
"""


def test_a_start_does_not_import_the_compiler():
    """It takes seconds, in every process."""
    done = subprocess.run([sys.executable, "-c", NO_COMPILER], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr

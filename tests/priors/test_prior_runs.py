# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Every prior in runs of the kernel: recovery, chains together, resuming, traces, networks."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from prior_families import FAMILIES
from runs import assert_same_records, copy_records, make_kernel, make_mcmc, resume_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb import priors

GROUPS, SIZE, N = 8, 3, 80
TRUE = torch.zeros(GROUPS, SIZE)
TRUE[2] = torch.tensor([3.0, -2.0, 1.5])
X = torch.randn(N, GROUPS * SIZE, generator=torch.Generator().manual_seed(1))
Y = X @ TRUE.flatten() + 0.5 * torch.randn(N, generator=torch.Generator().manual_seed(2))


class Regression:
    """Eight groups of three weights, of which one is not zero."""

    def __init__(self, family, grouped):
        self.family, self.grouped = family, grouped

    def __call__(self, x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 1.0))
        delta = pyro.sample("delta", dist.Beta(1.5, 5.0))
        prior = self.family.prior(delta, sigma2.sqrt()).expand([GROUPS, SIZE])
        prior = priors.Group(prior).to_event(1) if self.grouped else prior.to_event(2)
        beta = pyro.sample("beta", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ beta.flatten(), sigma2.sqrt()), obs=y)


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["each", "groups"])
def model(family, request):
    return Regression(family, request.param)


ADAPTATION = aeb.StochasticApproximation(aeb.Polynomial(10.0, 100.0, 0.7), initial_inclusion=0.9)


def test_it_finds_the_support(model):
    kernel = make_kernel(model, aeb.SGLD, 2e-4, adaptation=ADAPTATION)
    run = make_mcmc(kernel, draws=150, warmup=200, number=1)
    run.run(X, Y)
    beta = run.get_samples()["beta"].mean(0)
    wide = kernel.chain.posterior.adaptation.spike_and_slab.wide_probability(
        kernel.latents
    ).reshape(GROUPS, SIZE)
    assert torch.equal(wide > 0.5, TRUE != 0)
    # The standard error of least squares is 0.5 / sqrt(80) = 0.06.
    assert (beta - TRUE).abs().max() < 5 * 0.06
    assert 0.4 < kernel.latents.sigma < 0.6
    if model.grouped:
        assert torch.equal(wide, wide[:, :1].expand_as(wide))


def test_chains_step_together_as_alone(model):
    runs = [
        make_mcmc(make_kernel(model, step_size=1e-4), method=m)
        for m in ("sequential", "vectorized")
    ]
    for run in runs:
        run.run(X, Y)
    alone, together = (copy_records(run) for run in runs)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=2e-3, atol=2e-4, msg=name)


class Stop(Exception):
    pass


def stop_hook(kernel, params, stage, i):
    if stage.startswith("Sample") and i == 3:
        raise Stop


@pytest.mark.parametrize("name", ["SSGL", "normal", "lasso", "Student"])
def test_it_resumes_bit_by_bit(name, tmp_path):
    pytest.importorskip("zarr")
    model = Regression(FAMILIES[name], True)
    whole = make_mcmc(make_kernel(model, step_size=1e-4), number=1)
    whole.run(X, Y)
    cut = make_mcmc(
        make_kernel(model, step_size=1e-4), number=1, checkpoint=tmp_path, hook_fn=stop_hook
    )
    with pytest.raises(Stop):
        cut.run(X, Y)
    again = resume_mcmc(tmp_path, model)
    again.run(X, Y)
    assert_same_records(copy_records(again), copy_records(whole))


@pytest.mark.parametrize("name", ["normal", "lasso", "Student"])
def test_a_trace_holds_its_latents(name, tmp_path):
    pytest.importorskip("zarr")
    model = Regression(FAMILIES[name], False)
    run = make_mcmc(make_kernel(model, step_size=1e-4), number=1, trace=tmp_path / "run.zarr")
    run.run(X, Y)
    data = aeb.open_trace(tmp_path / "run.zarr")
    assert data["posterior"]["beta"].shape == (1, 8, GROUPS, SIZE)
    assert {"sigma2", "delta"} <= set(data["posterior"])
    rho = aeb.to_arviz(run)["adaptation"]["beta_rho"]
    assert rho.shape == (1, 8, GROUPS, SIZE) and 0 <= float(rho.min()) <= float(rho.max()) <= 1


def test_without_adaptation_it_is_sampled_under_its_density(model):
    kernel = make_kernel(model, step_size=1e-5, adaptation=None)
    run = make_mcmc(kernel, number=1)
    run.run(X, Y)
    assert {"beta", "sigma2", "delta"} <= run.get_samples().keys()


# Networks


def make_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


@pytest.fixture
def grouped():
    return aeb.nn.bayesianize(
        make_network(), delta=dist.Beta(2.0, 2.0), sigma2=dist.InverseGamma(1.0, 1.0), by_unit=True
    )


def classification(net):
    def model(x, y):
        logits = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def test_the_units_of_a_network_are_groups(grouped):
    data = torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 0, 1, 1, 0])
    kernel = make_kernel(classification(grouped), step_size=1e-5)
    run = make_mcmc(kernel, number=1)
    run.run(*data)
    sparse = kernel.chain.structure.sparse
    assert [(b.name, b.group) for b in sparse] == [("0.weight", 9), ("3.weight", 36)]
    rho = kernel.latents.rho.split([b.size for b in sparse])
    for own, block in zip(rho, sparse, strict=True):
        units = own.reshape(-1, block.group)
        assert torch.equal(units, units[:, :1].expand_as(units))
    assert rho[0].unique().numel() == 4  # the filters


def test_by_unit_has_to_be_a_bool():
    with pytest.raises(TypeError, match="by_unit is 'filter', expected True"):
        aeb.nn.bayesianize(make_network(), delta=0.5, sigma2=1.0, by_unit="filter")

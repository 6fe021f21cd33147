# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
``to_arviz`` with log densities and replicated data of every datum, which are compared with
computations by hand and go through ArviZ 0.x and 1.x.
"""

from __future__ import annotations

import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from pyro import poutine
from pyro.infer import MCMC, Predictive
from pyro.infer.reparam import LocScaleReparam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import pyro_aeb as aeb
from pyro_aeb.errors import SaveSizeWarning

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 2, generator=GENERATOR)
Y = X @ torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(20, generator=GENERATOR)
LABELS = (X[:, 0] > 0).long()


def regression(x, y=None, batch_size=None):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(x[i] @ b, 0.5), obs=None if y is None else y[i])


def by_batch(x, y=None):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(X), subsample=x):
        return pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)


def run(model, *args, draws=6, chains=1, adaptation=None, **kwargs):
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), adaptation, seed=0)
    mcmc = aeb.MCMC(
        kernel, draws, 5, num_chains=chains, chain_method="sequential", disable_progbar=True
    )
    mcmc.run(*args, **kwargs)
    return mcmc


def normal_by_hand(mcmc, x=X, y=Y):
    b = mcmc.get_samples(group_by_chain=True)["b"]
    return dist.Normal(torch.einsum("nk,cdk->cdn", x, b), 0.5).log_prob(y)


def assert_close(found, expected):
    np.testing.assert_allclose(found.values, np.asarray(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 5, 7])
def test_log_densities_are_those_by_hand_in_any_batches(batch_size):
    mcmc = run(regression, X, Y, chains=2, batch_size=batch_size)
    found = aeb.to_arviz(mcmc, log_likelihood=True)
    assert found.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert_close(found.log_likelihood["y"], normal_by_hand(mcmc))
    assert_close(found.observed_data["y"], Y)


def samplers():
    data = TensorDataset(X, Y)
    yield DataLoader(data, batch_size=6, shuffle=True)
    yield DataLoader(data, batch_size=6, shuffle=True, drop_last=True)
    yield DataLoader(data, batch_size=5, sampler=WeightedRandomSampler([1.0] * 20, 20))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", list(samplers()))
def test_a_loader_s_data_come_once_in_their_order(loader):
    mcmc = run(by_batch, loader)
    found = aeb.to_arviz(mcmc, log_likelihood=True, posterior_predictive=True)
    assert_close(found.log_likelihood["y"], normal_by_hand(mcmc))
    assert_close(found.observed_data["y"], Y)
    assert found.posterior_predictive["y"].shape == (1, 6, 20)


def test_a_list_of_batches_is_gone_through():
    batches = [(X[i : i + 5].numpy(), Y[i : i + 5].numpy()) for i in range(0, 20, 5)]
    mcmc = run(by_batch, batches)
    found = aeb.to_arviz(mcmc, log_likelihood=True)
    assert_close(found.log_likelihood["y"], normal_by_hand(mcmc))
    assert_close(found.observed_data["y"], Y)


def test_pyros_own_mcmc_has_the_data_too():
    kernel = aeb.AEBKernel(regression, aeb.SGLD(1e-3), seed=0)
    mcmc = MCMC(kernel, 6, 2, disable_progbar=True)
    mcmc.run(X, Y, batch_size=5)
    found = aeb.to_arviz(mcmc, log_likelihood=True)
    assert_close(found.log_likelihood["y"], normal_by_hand(mcmc))


def test_other_data_may_be_given():
    mcmc = run(regression, X, Y, batch_size=5)
    found = aeb.to_arviz(mcmc, log_likelihood=True, data=(X[:3], Y[:3]))
    assert_close(found.log_likelihood["y"], normal_by_hand(mcmc, X[:3], Y[:3]))
    assert_close(found.observed_data["y"], Y[:3])
    found = aeb.to_arviz(mcmc, posterior_predictive=True, data={"x": X[:3]})
    assert found.posterior_predictive["y"].shape == (1, 6, 3)
    with pytest.raises(ValueError, match=r"no data of the sites \['y'\].*data=\(X, y\)"):
        aeb.to_arviz(mcmc, log_likelihood=True, data=(X[:3],))


def test_replicated_data_have_the_law_of_the_model():
    mcmc = run(regression, X, Y, draws=400)
    random = torch.get_rng_state()
    found = aeb.to_arviz(mcmc, posterior_predictive=True).posterior_predictive["y"].values[0]
    assert torch.equal(torch.get_rng_state(), random)
    means = (mcmc.get_samples()["b"] @ X.T).numpy()
    z = (found - means) / 0.5
    assert abs(z.mean()) < 5 / 8000**0.5 and abs(z.std() - 1.0) < 5 / 16000**0.5


def test_samples_of_predictive_are_taken_over():
    mcmc = run(regression, X, Y, chains=2)
    samples = Predictive(regression, mcmc.get_samples(), return_sites=["y"])(X)
    found = aeb.to_arviz(mcmc, posterior_predictive=samples).posterior_predictive["y"]
    assert_close(found, samples["y"].reshape(2, 6, 20))
    with pytest.raises(ValueError, match=r"'y' of shape \(3, 20\), expected a first axis of 12"):
        aeb.to_arviz(mcmc, posterior_predictive={"y": torch.zeros(3, 20)})


def test_masks_and_weights_count_as_in_the_model():
    ok, weights = torch.arange(20) % 3 != 0, torch.linspace(0.5, 2.0, 20)

    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)), poutine.mask(mask=ok), poutine.scale(scale=weights):
            return pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)

    mcmc = run(model, X, Y)
    expected = torch.where(ok, normal_by_hand(mcmc) * weights, 0.0)
    assert_close(aeb.to_arviz(mcmc, log_likelihood=True).log_likelihood["y"], expected)


def test_events_have_one_density():
    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=6 if y is None else None) as i:
            value = None if y is None else torch.stack([y, -y], -1)
            mean = torch.stack([x[i] @ b, -(x[i] @ b)], -1)
            return pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=value)

    mcmc = run(model, X, Y)
    found = aeb.to_arviz(mcmc, log_likelihood=True, posterior_predictive=True)
    assert_close(found.log_likelihood["y"], 2.0 * normal_by_hand(mcmc))
    assert found.observed_data["y"].shape == (20, 2)
    found = aeb.to_arviz(mcmc, posterior_predictive=True, data=(X,))
    assert found.posterior_predictive["y"].shape == (1, 6, 20, 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).relu()))


def network(net):
    def model(x, label=None):
        logits = net(x)
        with pyro.plate("data", len(X), subsample=x):
            return pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    return model


def test_a_network_s_running_averages_are_those_of_every_draw():
    torch.manual_seed(0)
    model = network(aeb.nn.bayesianize(Net(), sparse=[], delta=0.5, sigma2=1.0))
    mcmc = run(model, X, LABELS)
    found = aeb.to_arviz(mcmc, log_likelihood=True).log_likelihood["label"]
    draws = mcmc.get_samples()
    for i in range(6):
        w = {name: values[i] for name, values in draws.items()}
        hidden = X @ w["first.weight"].T + w["first.bias"]
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt()
        logits = hidden.relu() @ w["last.weight"].T + w["last.bias"]
        expected = dist.Categorical(logits=logits).log_prob(LABELS)
        np.testing.assert_allclose(found.values[0, i], expected, rtol=1e-3, atol=1e-4)


def test_arviz_compares_and_plots():
    torch.manual_seed(0)
    groups = {}
    for name, x in (("both", X), ("one", X * torch.tensor([1.0, 0.0]))):
        mcmc = run(regression, x, Y, draws=200, chains=2, batch_size=10)
        groups[name] = aeb.to_arviz(mcmc, log_likelihood=True, posterior_predictive=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loo = {name: az.loo(group) for name, group in groups.items()}
        table = az.compare(groups)
        plot = getattr(az, "plot_ppc", None) or az.plot_ppc_dist
        plot(groups["both"])
        pyplot.close("all")
    elpd = {name: getattr(result, "elpd_loo", None) or result.elpd for name, result in loo.items()}
    assert elpd["both"] > elpd["one"]
    assert list(table.index) == ["both", "one"]


def test_reparametrised_latents_are_in_the_posterior():
    def schools(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, 2.0))
            return pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    model = poutine.reparam(schools, {"theta": LocScaleReparam(0.0)})
    mcmc = run(model, Y[:8], chains=2)
    found = aeb.to_arviz(mcmc, log_likelihood=True)
    draws = mcmc.get_samples(group_by_chain=True)
    theta = draws["mu"][..., None] + 2.0 * draws["theta_decentered"]
    assert found.posterior["theta"].dims == ("chain", "draw", "schools")
    assert_close(found.posterior["theta"], theta)
    assert found.posterior["theta"].attrs["kind"] == "deterministic"
    assert found.posterior.attrs["draws"] == "mu, theta_decentered"
    assert list(found.observed_data.data_vars) == ["y"]
    assert_close(found.log_likelihood["y"], dist.Normal(theta, 1.0).log_prob(Y[:8]))
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), save=["mu"], seed=0)
    mcmc = aeb.MCMC(kernel, 3, 1, disable_progbar=True)
    mcmc.run(Y[:8])
    assert list(aeb.to_arviz(mcmc).posterior.data_vars) == ["mu"]  # theta cannot be computed


def test_what_cannot_be_gathered_is_refused():
    kernel = aeb.AEBKernel(regression, aeb.SGLD(1e-3), save=[], seed=0)
    mcmc = MCMC(kernel, 3, 1, disable_progbar=True)
    mcmc.run(X, Y)
    with pytest.raises(aeb.ModelError, match="hold no sites"):
        aeb.to_arviz(mcmc, log_likelihood=True)

    def factor(x):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.factor("fit", -(x @ b).square().sum())

    with pytest.raises(aeb.ModelError, match=r"no observed site that is data.*obs=data"):
        aeb.to_arviz(run(factor, X), log_likelihood=True)

    def two_plates(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        rows = pyro.plate("rows", 5, subsample_size=2, dim=-2)
        columns = pyro.plate("columns", 4, subsample_size=2, dim=-1)
        with rows as i, columns as j:
            part = y.reshape(5, 4)[i][:, j]
            pyro.sample("y", dist.Normal(b.sum(), 0.5), obs=part)

    with pytest.raises(aeb.ModelError, match=r"\['columns', 'rows'\] each take a part"):
        aeb.to_arviz(run(two_plates, X, Y), log_likelihood=True)
    mcmc = run(regression, X, Y)
    mcmc._arguments = None
    mcmc.kernel._chain = None
    with pytest.raises(aeb.ModelError, match=r"not at hand.*data=\(X, y\)"):
        aeb.to_arviz(mcmc, log_likelihood=True)


def test_large_results_are_announced(monkeypatch):
    mcmc = run(regression, X, Y, batch_size=5)
    monkeypatch.setattr("pyro_aeb.nn.pointwise.LARGE", 1)
    with pytest.warns(SaveSizeWarning, match="6 draws for every datum take 0.0 GiB.*thinning="):
        aeb.to_arviz(mcmc, log_likelihood=True)

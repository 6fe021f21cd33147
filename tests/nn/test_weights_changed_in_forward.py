# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Modules and models that change their weights as they run: refused, and no draw is overwritten."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_runs import make_kernel, make_pyro_mcmc
from replayed_runs import replay_draws
from torch import nn

from pyro_aeb import ModelError
from pyro_aeb.nn import PosteriorPredictive, bayesianize

INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
VALUES = torch.randn(6, generator=torch.Generator().manual_seed(2))


class Clamp(nn.Linear):
    """Changes no number at small weights."""

    def forward(self, x):
        self.weight.data.clamp_(-9.0, 9.0)
        return super().forward(x)


class MaxNorm(nn.Linear):
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=99.0)
        return super().forward(x)


class Masked(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight *= torch.ones_like(self.weight).tril()
        return super().forward(x)


class Assigned(nn.Linear):
    def forward(self, x):
        self.weight = nn.Parameter(self.weight.clamp(-9.0, 9.0))
        return super().forward(x)


class ByNumPy(nn.Linear):
    def forward(self, x):
        self.weight.detach().numpy()[0, 0] = 0.0
        return super().forward(x)


class InTraining(nn.Linear):
    def forward(self, x):
        if self.training:
            torch._foreach_clamp_max_([self.weight.data], 9.0)
        return super().forward(x)


def make_model(net):
    def model(x, y=None, batch_size=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


@pytest.mark.parametrize("kind", [Clamp, MaxNorm, Masked, Assigned, ByNumPy, InTraining])
def test_a_module_that_changes_its_weights_is_refused(kind):
    net = bayesianize(nn.Sequential(kind(3, 1)), delta=0.5, sigma2=1.0)
    message = r"changes the value of site '0.weight'.*self.weight.clamp.*parametriz"
    for _ in range(2):
        with pytest.raises(ModelError, match=message):
            net(INPUTS)
    with pytest.raises(ModelError, match=message):
        make_pyro_mcmc(make_kernel(make_model(net))).run(INPUTS, VALUES)


def test_it_is_refused_in_the_mode_in_which_it_happens():
    net = bayesianize(nn.Sequential(InTraining(3, 1)), delta=0.5, sigma2=1.0).eval()
    assert net(INPUTS).shape == (6, 1)
    with pytest.raises(ModelError, match="site '0.weight'"):
        copy.deepcopy(net).train()(INPUTS)


def test_a_model_of_its_own_sites_is_refused_too():
    def model(x, y=None, batch_size=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        w[0] = 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    with pytest.raises(ModelError, match="changes the value of site 'w'"):
        make_pyro_mcmc(make_kernel(model)).run(INPUTS, VALUES)


@pytest.mark.parametrize("train", [True, False])
def test_modules_that_compute_with_changed_copies_run(train):
    class Bounded(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.clamp(-1.0, 1.0), self.bias).relu_()

    net = bayesianize(Bounded(3, 1), delta=0.5, sigma2=1.0).train(train)
    make_pyro_mcmc(make_kernel(make_model(net))).run(INPUTS, VALUES)


def test_prediction_never_overwrites_draws():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        w.data.clamp_(-0.1, 0.1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    draws = torch.tensor([[2.0, -3.0, 0.0], [1.0, 5.0, 4.0]])
    run = replay_draws(w=draws)
    mean, _ = PosteriorPredictive(model, run)(INPUTS)
    assert torch.equal(run.get_samples()["w"], draws)
    torch.testing.assert_close(mean, (INPUTS @ draws.clamp(-0.1, 0.1).T).mean(-1))

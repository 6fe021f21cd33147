# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Buffers that follow the weights: those of every draw, computed by hand, or an error."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_runs import make_kernel, make_parallel_mcmc, make_pyro_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.nn import PosteriorPredictive, bayesianize, sparse_module

INPUTS = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
LABELS = (INPUTS[:, 0] > 0).long()
NORMS = [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]


def make_network_model(module, train=True):
    net = bayesianize(module, sparse=[], delta=0.5, sigma2=1.0).train(train)

    def model(x, y=None):
        logits = net(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return net, model


def run_network(module, x=INPUTS, train=True):
    net, model = make_network_model(module, train)
    mcmc = make_pyro_mcmc(make_kernel(model, 0.03, adaptation=None), draws=4)
    mcmc.run(x, LABELS)
    return net, model, mcmc


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eval_after", [False, True])
def test_spectral_norms_are_those_of_each_draw(norm, eval_after):
    torch.manual_seed(0)
    net, model, mcmc = run_network(nn.Sequential(norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)))
    net.train(not eval_after)
    draws = mcmc.get_samples()
    original = next(name for name in draws if "orig" in name)
    expected = []
    for i in range(4):
        weight = draws[original][i] / torch.linalg.matrix_norm(draws[original][i], 2)
        hidden = (INPUTS @ weight.T + draws["0.bias"][i]).tanh()
        expected.append((hidden @ draws["2.weight"][i].T + draws["2.bias"][i]).softmax(-1))
        module = sparse_module(net, mcmc, draw=i).eval()
        torch.testing.assert_close(module(INPUTS).softmax(-1), expected[-1], rtol=1e-4, atol=1e-5)
    mean = torch.stack(expected).mean(0)
    for recalibrate in (None, (INPUTS, LABELS)):
        found = PosteriorPredictive(model, mcmc, recalibrate=recalibrate)(INPUTS)
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)


def test_singular_vectors_that_the_run_leaves_alone_stay():
    torch.manual_seed(0)
    module = NORMS[0](nn.Linear(5, 2)).eval()
    module.parametrizations.weight[0]._u.fill_(0.5)
    net, model, mcmc = run_network(module, train=False)
    before = dict(net.module.named_buffers())
    exported = dict(sparse_module(net, mcmc, draw=0).named_buffers())
    assert all(torch.equal(exported[name], value) for name, value in before.items())


class Averages(nn.Module):
    """A normalisation layer of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.level = 0.9 * self.level + 0.1 * x.detach().mean(0)
            return x - x.mean(0)
        return x - self.level


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), Averages()])
@pytest.mark.parametrize("eval_after", [False, True])
def test_buffers_of_the_last_state_are_refused_by_name(layer, eval_after):
    torch.manual_seed(0)
    net, model, mcmc = run_network(nn.Sequential(nn.Linear(5, 4), layer, nn.Linear(4, 2)))
    net.train(not eval_after)
    with pytest.raises(ModelError, match=r"buffers \['1\.(level|running_mean).*last state"):
        sparse_module(net, mcmc, draw=0)
    with pytest.raises(ModelError, match=r"buffers \['.*1\.(level|running_mean).*last state"):
        PosteriorPredictive(model, mcmc)(INPUTS)
    assert net.training != eval_after


def expected_of_draw(draws, i, normalise):
    hidden = normalise(INPUTS @ draws["0.weight"][i].T + draws["0.bias"][i])
    hidden = hidden * draws["1.weight"][i] + draws["1.bias"][i]
    return (hidden @ draws["2.weight"][i].T + draws["2.bias"][i]).softmax(-1)


def test_running_statistics_are_recalibrated_in_export_as_in_prediction():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)]
    net, model, mcmc = run_network(nn.Sequential(*layers))

    def normalise(h):
        return (h - h.mean(0)) / (h.var(0) + 1e-5).sqrt()

    expected = [expected_of_draw(mcmc.get_samples(), i, normalise) for i in range(4)]
    data = (INPUTS, LABELS)
    for i in range(4):
        module = sparse_module(net, mcmc, draw=i, recalibrate=data).eval()
        torch.testing.assert_close(module(INPUTS).softmax(-1), expected[i], rtol=1e-4, atol=1e-5)
    found = PosteriorPredictive(model, mcmc, recalibrate=data)(INPUTS)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 3, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm1d(3, track_running_stats=True)
        self.last = nn.Linear(15, 2, bias=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x[:, None])).tanh().flatten(1))


def test_instance_norm_is_recalibrated():
    torch.manual_seed(0)
    net, model, mcmc = run_network(Images())
    draws, expected = mcmc.get_samples(), []
    for i in range(4):
        hidden = nn.functional.conv1d(INPUTS[:, None], draws["first.weight"][i], padding=1)
        mean, variance = hidden.mean(-1).mean(0), hidden.var(-1).mean(0)
        hidden = (hidden - mean[:, None]) / (variance + 1e-5).sqrt()[:, None]
        expected.append((hidden.tanh().flatten(1) @ draws["last.weight"][i].T).softmax(-1))
    found = PosteriorPredictive(model, mcmc, recalibrate=(INPUTS, LABELS))(INPUTS)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"norm\.running_mean"):
        PosteriorPredictive(model, mcmc)(INPUTS)


class Counts(nn.Module):
    """Counts its calls, and normalises its inputs, which are the data."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2, 5))

    def forward(self, x):
        self.calls += 1
        self.cache.copy_(self.last.weight.detach())
        return nn.functional.linear(self.norm(x), self.cache * 0.0 + self.last.weight)


def test_buffers_that_fit_every_draw_are_no_error():
    torch.manual_seed(0)
    _, model, mcmc = run_network(Counts())
    probs = PosteriorPredictive(model, mcmc)(INPUTS)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(INPUTS)))


def predict_by_hand(draw, mean, variance):
    hidden = INPUTS @ draw["0.weight"].T + draw["0.bias"]
    hidden = nn.functional.batch_norm(hidden, mean, variance, draw["1.weight"], draw["1.bias"])
    return (hidden @ draw["2.weight"].T + draw["2.bias"]).softmax(-1)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_the_hook_predicts_a_state_with_its_own_buffers(method):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net, model = make_network_model(layers)
    predict, expected, exported = PosteriorPredictive(model, data=(INPUTS, LABELS)), [], []

    def hook(kernel, samples, stage, i):
        predict.hook(kernel, samples, stage, i)
        if stage.startswith("Sample"):
            chain = kernel.chain
            names = [name for _, name in chain.buffers.places]
            for c, draw in enumerate(chain.values_by_chain()):
                values = [v[c] if chain.shape else v for v in chain.buffers.values()]
                buffers = dict(zip(names, values, strict=True))
                mean, variance = buffers["running_mean"], buffers["running_var"]
                expected.append(predict_by_hand(draw, mean.clone(), variance.clone()))
            exported.append(sparse_module(net, mcmc).eval()(INPUTS).softmax(-1))
            torch.testing.assert_close(exported[-1], expected[-1])

    kernel = make_kernel(model, 0.03, adaptation=None)
    mcmc = aeb.MCMC(kernel, 3, 1, num_chains=2, chain_method=method, hook_fn=hook)
    mcmc.run(INPUTS, LABELS)
    assert len(expected) == 6
    assert not torch.equal(expected[0], expected[1])
    torch.testing.assert_close(predict(), torch.stack(expected).mean(0))
    last = sparse_module(net, mcmc).eval()(INPUTS).softmax(-1)
    torch.testing.assert_close(last, expected[-1])


def test_buffers_that_worker_processes_changed_are_refused_after_eval():
    net, model = make_network_model(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    mcmc = make_parallel_mcmc(make_kernel(model, 0.03, adaptation=None), context="fork")
    mcmc.run(INPUTS, LABELS)
    net.eval()
    with pytest.raises(ModelError, match=r"1\.running_mean.*recalibrate="):
        PosteriorPredictive(model, mcmc)(INPUTS)
    with pytest.raises(ModelError, match=r"1\.running_mean.*recalibrate="):
        sparse_module(net, mcmc, draw=-1)
    PosteriorPredictive(model, mcmc, recalibrate=(INPUTS,))(INPUTS)


def test_recalibration_needs_all_sites_of_a_draw():
    net = bayesianize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), delta=0.5, sigma2=1.0)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([5, 4]).to_event(2))
        logits = net(x @ w)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    save = [*net.sparse_sites, *net.dense_sites]
    mcmc = make_pyro_mcmc(make_kernel(model, 0.03, save=save))
    mcmc.run(INPUTS, LABELS)
    with pytest.raises(ModelError, match=r"do not hold \['w'\].*recalibrate=.*save="):
        sparse_module(net, mcmc, draw=0, recalibrate=(INPUTS, LABELS))


def test_spectral_norms_of_convolutions_are_those_of_each_draw():
    torch.manual_seed(0)
    layers = nn.Sequential(NORMS[0](nn.Conv1d(1, 3, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    net, model, mcmc = run_network(layers, INPUTS[:, None])
    draws = mcmc.get_samples()
    original = next(name for name in draws if "orig" in name)
    expected = []
    for i in range(4):
        weight = draws[original][i]
        weight = weight / torch.linalg.svdvals(weight.flatten(1))[0]
        hidden = nn.functional.conv1d(INPUTS[:, None], weight, draws["0.bias"][i]).tanh()
        expected.append(hidden.flatten(1) @ draws["3.weight"][i].T + draws["3.bias"][i])
        exported = sparse_module(net, mcmc, draw=i).eval()
        torch.testing.assert_close(exported(INPUTS[:, None]), expected[-1], rtol=1e-4, atol=1e-5)
    found = PosteriorPredictive(model, mcmc)(INPUTS[:, None])
    mean = torch.stack(expected).softmax(-1).mean(0)
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)

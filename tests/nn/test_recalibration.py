# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""BatchNorm statistics of single draws, against statistics computed by hand and by torch."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from replayed_runs import replay_draws
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from pyro_aeb.nn import PosteriorPredictive
from pyro_aeb.nn.evaluation_mode import BatchNormStatistics, evaluation_mode

TRAIN = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)) * 3.0 + 1.0
TEST = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
WEIGHTS = torch.tensor(
    [[[2.0, 1.0], [0.0, -1.0], [1.0, 1.0]], [[-1.0, 0.5], [3.0, 0.0], [0.2, 2.0]]]
)
"""Two draws of three hidden units of two inputs."""


class Network(nn.Module):
    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3, bias=False)
        self.norm = nn.BatchNorm1d(3, affine=False, momentum=momentum)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.first(x)))


def make_model(network):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        logits = torch.func.functional_call(network, {"first.weight": w}, (x,))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def make_loader(*tensors) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), 4)  # 4 and 3 data


def test_statistics_are_the_draws_own_and_averages_over_batches():
    predict = PosteriorPredictive(
        make_model(Network()), replay_draws(w=WEIGHTS), recalibrate=make_loader(TRAIN)
    )
    expected = []
    for w in WEIGHTS:
        hidden = [x @ w.T for x in TRAIN.split(4)]
        mean = (hidden[0].mean(0) + hidden[1].mean(0)) / 2
        variance = (hidden[0].var(0) + hidden[1].var(0)) / 2  # unbiased, as BatchNorm keeps them
        expected.append(((TEST @ w.T - mean) / (variance + 1e-5).sqrt()).softmax(-1))
    torch.testing.assert_close(predict(TEST), torch.stack(expected).mean(0))


@pytest.mark.parametrize(
    "batches",
    [
        TRAIN.split(4),
        list(TRAIN.split(4)),
        [(x,) for x in TRAIN.split(4)],
        lambda: (yield from TRAIN.split(4)),
    ],
    ids=["tuple", "list", "list of tuples", "generator function"],
)
def test_batches_need_no_loader(batches):
    draws = replay_draws(w=WEIGHTS)
    found = PosteriorPredictive(make_model(Network()), draws, recalibrate=batches)
    expected = PosteriorPredictive(make_model(Network()), draws, recalibrate=make_loader(TRAIN))
    assert torch.equal(found(TEST), expected(TEST))


def test_statistics_are_those_of_update_bn_where_there_is_no_dropout():
    network = Network().train()
    network.drop.p = 0.0
    own = BatchNormStatistics()
    with evaluation_mode(), own.estimate(), torch.no_grad():
        for x in TRAIN.split(4):
            network(x)
    before = network.norm.running_mean.clone()
    update_bn(TRAIN.split(4), network)
    assert not torch.equal(network.norm.running_mean, before)
    with own.apply():
        lent = {name: buffer.clone() for name, buffer in network.norm.named_buffers()}
    for name, buffer in network.norm.named_buffers():
        torch.testing.assert_close(lent[name], buffer)


def test_one_pass_over_the_training_data_serves_all_draws():
    seen = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    train = DataLoader(Watched(TRAIN), 4)
    PosteriorPredictive(make_model(Network()), replay_draws(w=WEIGHTS), recalibrate=train)(TEST)
    assert seen == list(range(len(TRAIN)))


def test_training_data_may_come_with_labels_or_as_tensors():
    run, labels = replay_draws(w=WEIGHTS), torch.zeros(len(TRAIN), dtype=torch.int64)
    with_labels = PosteriorPredictive(
        make_model(Network()), run, recalibrate=DataLoader(TensorDataset(TRAIN, labels), 7)
    )
    at_once = PosteriorPredictive(make_model(Network()), run, recalibrate=(TRAIN,))
    assert torch.equal(with_labels(TEST), at_once(TEST))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_modules_are_left_as_they_were(momentum):
    network = Network(momentum).train()
    network.norm.eval()
    network.norm.running_mean.fill_(5.0)
    mean = network.norm.running_mean
    predict = PosteriorPredictive(
        make_model(network), replay_draws(w=WEIGHTS), recalibrate=(TRAIN,)
    )
    predict(TEST)
    with pytest.raises(KeyError):
        with evaluation_mode(), BatchNormStatistics().estimate():
            network(TRAIN)
            raise KeyError
    assert network.norm.running_mean is mean and bool((mean == 5.0).all())
    assert int(network.norm.num_batches_tracked) == 0
    assert network.norm.momentum == momentum
    assert (network.training, network.norm.training, network.drop.training) == (True, False, True)


def test_without_batch_norm_it_costs_one_run_of_the_model():
    runs = []

    def model(x, y=None):
        runs.append(len(x))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=x @ w.T), obs=y)

    run = replay_draws(w=WEIGHTS)
    found = PosteriorPredictive(model, run, recalibrate=make_loader(TRAIN))(TEST)
    assert runs == [4] + [len(TEST)] * 2
    assert torch.equal(found, PosteriorPredictive(model, run)(TEST))


def test_batch_norm_without_running_statistics_is_left_alone():
    network = Network()
    network.norm = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    run = replay_draws(w=WEIGHTS)
    found = PosteriorPredictive(make_model(network), run, recalibrate=(TRAIN,))(TEST)
    assert torch.equal(found, PosteriorPredictive(make_model(network), run)(TEST))


def test_evaluation_mode_reaches_modules_when_they_are_called_and_puts_back_every_flag():
    outer = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)))
    outer[1][0].eval()
    flags = [module.training for module in outer.modules()]
    x = torch.ones(3, 2)
    with pytest.raises(KeyError):
        with evaluation_mode():
            torch.testing.assert_close(outer(x), x, rtol=1e-4, atol=0.0)  # eps of BatchNorm
            assert not any(module.training for module in outer.modules())
            raise KeyError
    assert [module.training for module in outer.modules()] == flags

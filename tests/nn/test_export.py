# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Plain modules made from draws, and their counts of weights."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from modules import KINDS, Classifier, Convolutions, Tied, make_bayesian, perceptron
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.api import StreamingMCMC
from pyro_runs import make_kernel, make_pyro_mcmc, make_sequential_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.model.side_effects import Buffers

N = 6


def make_labels() -> torch.Tensor:
    return torch.arange(N) % 3


def run_mcmc(net, x, make=make_pyro_mcmc, **options):
    run = make(make_kernel(Classifier(net), **{"step_size": 1e-4, **options}), draws=3, warmup=1)
    run.run(x, make_labels(), batch_size=4)
    return run


def weights_by_name(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


# sparse_module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draw", [0, -1])
def test_output_equals_the_networks_at_that_draw(kind, draw):
    make, inputs = KINDS[kind]
    net, x = make_bayesian(make()), inputs(N)
    run = run_mcmc(net, x)
    if draw == 0 and any(isinstance(part, nn.BatchNorm2d) for part in net.modules()):
        with pytest.raises(ModelError, match="running_mean.*recalibrate="):
            aeb.nn.sparse_module(net, run, draw=draw)
        module = aeb.nn.sparse_module(net, run, draw=draw, recalibrate=(x,))
        net.load_state_dict(
            {f"module.{name}": buffer for name, buffer in module.named_buffers()}, strict=False
        )
    else:
        module = aeb.nn.sparse_module(net, run, draw=draw)
    assert type(module) is type(net.module)
    # Cloned, as the order of a sum may depend on where in memory a tensor starts.
    at_draw = {name: draws[draw].clone() for name, draws in run.get_samples().items()}
    with torch.no_grad():
        net.eval()
        module.eval()
        assert torch.equal(module(x), poutine.condition(net, at_draw)(x))


def test_all_else_is_as_in_the_networks_module():
    module = Convolutions()
    module.conv.requires_grad_(False)
    net = make_bayesian(module)
    run = run_mcmc(net, torch.randn(N, 1, 4, 4))
    for training in (True, False):
        net.train(training)
        found = aeb.nn.sparse_module(net, run)
        assert found.training == found.norm.training == training
    assert [p.requires_grad for p in found.parameters()] == [False] + 4 * [True]
    assert torch.equal(found.conv.weight, module.conv.weight)
    buffers = dict(net.module.named_buffers())
    assert buffers["norm.num_batches_tracked"] > 0
    assert_same(dict(found.named_buffers()), buffers)
    # They share nothing.
    found.norm.running_mean.add_(1.0)
    assert not torch.equal(found.norm.running_mean, net.module.norm.running_mean)
    with torch.no_grad():
        found.last.weight.zero_()
    assert (run.get_samples()["last.weight"] != 0.0).all()


def test_tied_weights_stay_tied():
    net = make_bayesian(Tied())
    found = aeb.nn.sparse_module(net, run_mcmc(net, torch.randn(N, 4)))
    assert found.last.weight is found.first.weight
    assert found.blocks[0] is found.blocks[1]


def test_draws_of_several_chains_count_one_after_the_other():
    net = make_bayesian(perceptron())
    run = run_mcmc(net, torch.randn(N, 4), make_sequential_mcmc)
    draws = run.get_samples(group_by_chain=True)["0.weight"]
    assert torch.equal(weights_by_name(aeb.nn.sparse_module(net, run, 4))["0.weight"], draws[1, 1])
    assert torch.equal(weights_by_name(aeb.nn.sparse_module(net, run, -4))["0.weight"], draws[0, 2])
    for draw in (6, -7):
        with pytest.raises(IndexError, match=f"draw is {draw}, expected .* from -6 to 5"):
            aeb.nn.sparse_module(net, run, draw)


def test_any_kernel_will_do():
    net = make_bayesian(perceptron(), sparse=[])
    run = MCMC(NUTS(Classifier(net), max_tree_depth=1), 2, warmup_steps=1, disable_progbar=True)
    run.run(torch.randn(N, 4), make_labels())
    expected = {name: draws[0] for name, draws in run.get_samples().items()}
    assert_same(weights_by_name(aeb.nn.sparse_module(net, run, 0)), expected)


def test_the_last_state_where_the_draws_do_not_hold_the_weights():
    x = torch.randn(N, 4)
    for save in (["sigma2"], ["sigma2", "0.weight"]):
        net = make_bayesian(perceptron())
        run = run_mcmc(net, x, save=save)
        found = weights_by_name(aeb.nn.sparse_module(net, run))
        state = run.kernel.chain.values()
        assert_same(found, {name: state[name] for name in found})
        assert (found["0.weight"] != net.module[0].weight).all()


def test_in_a_run_and_after_a_streaming_one():
    net = make_bayesian(perceptron())
    seen = []

    def hook(*_):
        seen.append(weights_by_name(aeb.nn.sparse_module(net, run)))

    kernel = make_kernel(Classifier(net), step_size=1e-4)
    run = StreamingMCMC(kernel, 2, hook_fn=hook, disable_progbar=True)
    run.run(torch.randn(N, 4), make_labels())
    assert (seen[-1]["0.weight"] != seen[-2]["0.weight"]).all()
    assert_same(weights_by_name(aeb.nn.sparse_module(net, run)), seen[-1])


def test_weights_that_are_nowhere():
    net = make_bayesian(perceptron())
    run = run_mcmc(net, torch.randn(N, 4), save=["sigma2", "0.weight"])
    with pytest.raises(ModelError, match="3 of the network's 4 weights, '2.weight' first.*save="):
        aeb.nn.sparse_module(net, run, draw=0)
    run.kernel = pickle.loads(pickle.dumps(run.kernel))  # as after chains in processes
    with pytest.raises(ModelError, match="worker processes leave none behind.*save="):
        aeb.nn.sparse_module(net, run)
    with pytest.raises(ModelError, match="do not hold 4 of the network's 4 weights"):
        aeb.nn.sparse_module(net, make_pyro_mcmc(make_kernel(Classifier(net))))


def test_another_network():
    net = make_bayesian(perceptron())
    run = run_mcmc(net, torch.randn(N, 4))
    other = make_bayesian(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)))
    with pytest.raises(ModelError, match=r"'0.weight' have shape \(5, 4\), expected \(7, 4\)"):
        aeb.nn.sparse_module(other, run)
    with pytest.raises(TypeError, match="net is Sequential, expected a BayesianModule"):
        aeb.nn.sparse_module(net.module, run)


# State dicts


def make_pruned_module() -> nn.Module:
    module = Convolutions()
    with torch.no_grad():
        module.conv.weight[0] = 0.0
        module.last.weight[:, 2:] = -0.0
    return module.eval()


def export_weights(module: nn.Module) -> nn.Module:
    """A module's weights through sparse_module."""
    net = make_bayesian(module)
    weights = weights_by_name(module)
    chain = SimpleNamespace(values_by_chain=lambda: [weights], buffers=Buffers((), None))
    return aeb.nn.sparse_module(net, SimpleNamespace(kernel=SimpleNamespace(chain=chain)))


def test_state_dict_through_a_file(tmp_path):
    module = export_weights(make_pruned_module())
    torch.save(module.state_dict(), tmp_path / "network.pt")
    loaded = Convolutions()
    loaded.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert_same(loaded.state_dict(), module.state_dict())
    assert_same(aeb.nn.masks(loaded), aeb.nn.masks(module))


def test_state_dict_through_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module = export_weights(make_pruned_module())
    safetensors.save_file(module.state_dict(), tmp_path / "network.safetensors")
    loaded = safetensors.load_file(tmp_path / "network.safetensors")
    assert_same(loaded, dict(module.state_dict()))


# Masks and counts


def test_masks():
    found = aeb.nn.masks(make_pruned_module())
    assert found.keys() == weights_by_name(make_pruned_module()).keys()
    assert all(mask.dtype == torch.bool for mask in found.values())
    assert found["conv.weight"].tolist() == [[[[False] * 3] * 3], [[[True] * 3] * 3]]
    assert found["last.weight"].tolist() == [[True, True] + [False] * 6] * 3


def test_parameter_counts():
    # conv 2 x 9 weights, half of them zero; norm 2 scales of 1 and 2 shifts of 0; last 3 x 8 + 3.
    counts = aeb.nn.parameter_counts(make_pruned_module())
    assert [(layer.name, layer.total, layer.nonzero) for layer in counts.layers] == [
        ("conv", 18, 9),
        ("norm", 4, 2),
        ("last", 27, 9),
    ]
    assert (counts.total, counts.nonzero, counts.sparsity) == (49, 20, 29 / 49)
    assert counts.layers[0].sparsity == 0.5
    rows = [line.split() for line in str(counts).splitlines()]
    assert rows == [
        ["layer", "weights", "not", "zero", "sparsity"],
        ["conv", "18", "9", "50.00", "%"],
        ["norm", "4", "2", "50.00", "%"],
        ["last", "27", "9", "66.67", "%"],
        ["all", "49", "20", "59.18", "%"],
    ]


def test_parameter_counts_of_shared_weights_and_of_none():
    assert aeb.nn.parameter_counts(Tied()).total == 12 + 3 + 12 + 3
    counts = aeb.nn.parameter_counts(nn.Tanh())
    assert (counts.layers, counts.total, counts.nonzero, counts.sparsity) == ((), 0, 0, 0.0)

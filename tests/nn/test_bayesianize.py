# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Bayesian networks made from torch modules of many kinds, in short runs."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from modules import KINDS, Classifier, Convolutions, HandWritten, Tied, make_bayesian, perceptron
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.inspect import get_dependencies
from pyro.nn import PyroModule
from pyro_runs import (
    make_kernel,
    make_parallel_mcmc,
    make_pyro_mcmc,
    make_sequential_mcmc,
    samples_by_chain,
)
from torch import nn

import pyro_aeb as aeb

N = 6

of_every_kind = pytest.mark.parametrize("kind", KINDS)


def make_network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    make, inputs = KINDS[kind]
    return make(), inputs(N)


def make_labels() -> torch.Tensor:
    return torch.arange(N) % 3


def copy_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def sampled_sites(net, *args) -> dict[str, dict]:
    trace = poutine.trace(net).get_trace(*args)
    return {name: trace.nodes[name] for name in trace.stochastic_nodes}


def run_kernel(net, x, batch_size=None, **options):
    run = make_pyro_mcmc(
        make_kernel(Classifier(net), **{"step_size": 1e-4, **options}), draws=2, warmup=1
    )
    run.run(x, make_labels(), batch_size=batch_size)
    return run


# Six kinds of module


@of_every_kind
def test_sites_are_the_named_parameters(kind):
    module, x = make_network(kind)
    net = make_bayesian(module)
    found = sampled_sites(net, x)
    shapes = {n: s["value"].shape for n, s in found.items() if n not in net.latent_sites}
    assert shapes == {name: p.shape for name, p in module.named_parameters()}
    assert set(net.latent_sites) == found.keys() - shapes.keys()
    sparse = {n for n, p in module.named_parameters() if p.dim() >= 2}
    assert set(net.sparse_sites) == sparse
    assert set(net.dense_sites) == shapes.keys() - sparse
    deltas = {".".join([*n.split(".")[:-1], "delta"]) for n in sparse}
    assert set(net.latent_sites) == {"sigma2", *deltas}


@of_every_kind
def test_a_call_is_the_modules_with_the_values_of_the_sites(kind):
    module, x = make_network(kind)
    module.eval()
    net = make_bayesian(module)
    with torch.no_grad():
        found = poutine.condition(net, copy_weights(module))(x)
        assert torch.equal(found, module(x))
        # Other values, which only the sites know.
        other = {name: 0.5 * weight + 0.1 for name, weight in copy_weights(module).items()}
        found = poutine.condition(net, other)(x)
        module.load_state_dict(other, strict=False)
        for name, parameter in module.named_parameters():
            parameter.copy_(other[name])
        assert torch.equal(found, module(x))


@of_every_kind
def test_the_kernel_finds_the_roles_and_moves_all_weights(kind):
    module, x = make_network(kind)
    given = copy.deepcopy(module)
    net = make_bayesian(module)
    start = copy_weights(net.module)
    run = run_kernel(net, x, batch_size=4)
    structure = run.kernel.chain.structure
    assert {block.name for block in structure.sparse} == set(net.sparse_sites)
    assert {block.name for block in structure.normal} == set(net.dense_sites)
    assert structure.general == ()
    assert set(structure.latent_sites) == set(net.latent_sites)
    assert len(structure.sigmas) == 1
    for name, weight in start.items():
        assert (run.get_samples()[name][-1] != weight).all(), name
    # Neither the module given nor the first values have changed.
    assert module.training == given.training
    for other in (module, net.module):
        assert copy_weights(other).keys() == start.keys()
        assert all(torch.equal(weight, start[name]) for name, weight in copy_weights(other).items())
    for name, buffer in given.named_buffers():
        assert torch.equal(module.get_buffer(name), buffer), name


@of_every_kind
def test_pickle_and_deepcopy(kind):
    module, x = make_network(kind)
    net = make_bayesian(module.eval())
    with torch.no_grad():
        values = {name: site["value"] for name, site in sampled_sites(net, x).items()}
        expected = poutine.condition(net, values)(x)
        for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
            assert torch.equal(poutine.condition(other, values)(x), expected)
            assert other.latent_sites == net.latent_sites
            # It starts from its own weights.
            name = net.sparse_sites[0]
            start = sampled_sites(other, x)[name]["infer"]["init_value"]
            assert start is other.module.get_parameter(name)


# Chains


def test_a_chain_starts_at_the_modules_weights():
    net = make_bayesian(perceptron())
    run = run_kernel(net, torch.randn(N, 4), step_size=1e-14)
    for name, weight in copy_weights(net.module).items():
        # Six steps of noise of standard deviation sqrt(2e-14).
        torch.testing.assert_close(run.get_samples()[name][-1], weight, atol=1e-5, rtol=0.0)


@pytest.mark.slow
def test_chains_in_spawned_processes():
    x = torch.randn(N, 1, 4, 4)
    module = Convolutions()
    module.dropout = nn.Identity()  # which draws on torch's own generator
    net = make_bayesian(module, ["conv", "last"])
    side_by_side, in_turn = (
        make(make_kernel(Classifier(copy.deepcopy(net)), step_size=1e-4), draws=2)
        for make in (make_parallel_mcmc, make_sequential_mcmc)
    )
    for run in (side_by_side, in_turn):
        run.run(x, make_labels(), batch_size=4)
    found = samples_by_chain(side_by_side)
    assert found.keys() == {*net.sparse_sites, *net.dense_sites, *net.latent_sites}
    assert all(draws.shape[:2] == (2, 2) for draws in found.values())
    assert (found["conv.weight"][0] != found["conv.weight"][1]).all()
    # In turn, the second chain starts with the batch norm's averages that the first one left, but
    # in training mode they have no effect.
    for name, draws in samples_by_chain(in_turn).items():
        assert torch.equal(found[name], draws), name


def test_stock_tools_work_on_a_run():
    x = torch.randn(N, 4)
    run = run_kernel(make_bayesian(perceptron()), x)
    model = run.kernel.model
    assert Predictive(model, run.get_samples())(x)["y"].shape == (2, N)
    idata = aeb.to_arviz(run)
    assert idata.posterior["0.weight"].shape == (1, 2, 5, 4)
    assert idata.adaptation["0.weight_rho"].shape == (1, 2, 5, 4)


def test_a_network_in_a_pyro_module():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = make_bayesian(perceptron())

        def forward(self, x, y):
            logits = self.net(x)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    run = make_pyro_mcmc(make_kernel(Model(), step_size=1e-4), draws=2)
    run.run(torch.randn(N, 4), make_labels())
    assert len(run.kernel.chain.structure.sparse) == 2


def test_a_hand_written_network_with_ssgl_priors():
    x = torch.randn(N, 4)
    run = run_kernel(HandWritten(), x, batch_size=4)
    structure = run.kernel.chain.structure
    assert {block.name for block in structure.sparse} == {"first.weight", "last.weight"}
    assert {block.name for block in structure.normal} == {"first.bias", "last.bias"}
    expected = {f"{layer}.{name}" for layer in ("first", "last") for name in ("delta", "sigma2")}
    assert set(structure.latent_sites) == expected
    draws = run.get_samples()
    assert all((draws[name][0] != draws[name][1]).all() for name in draws)


# Which layers are sparse


@pytest.mark.parametrize(
    ("sparse", "expected"),
    [
        ("*.0", {"blocks.0.0.weight"}),
        ("*.1.*", {"blocks.0.0.weight"}),  # the second name of a shared block
        ("blocks.*", {"blocks.0.0.weight"}),
        (["first", "*.0"], {"first.weight", "blocks.0.0.weight"}),
        ("last", {"first.weight"}),  # the second name of a tied weight
        (lambda name, layer: layer.in_features == 3, {"blocks.0.0.weight"}),
        ([], set()),
    ],
)
def test_sparse_layers_by_name_pattern_or_function(sparse, expected):
    net = make_bayesian(Tied(), sparse)
    assert set(net.sparse_sites) == expected
    assert {*net.sparse_sites, *net.dense_sites} == {n for n, _ in Tied().named_parameters()}


def test_a_pattern_leaves_layers_without_a_wide_parameter_dense():
    assert make_bayesian(Convolutions(), "*").sparse_sites == ("conv.weight", "last.weight")


def test_a_layer_of_several_sparse_parameters_has_one_delta():
    net = make_bayesian(nn.LSTM(2, 3))
    assert net.sparse_sites == ("weight_ih_l0", "weight_hh_l0")
    assert net.latent_sites == ("sigma2", "delta")  # the module itself is the layer


def test_without_a_sparse_layer_no_latents():
    net = make_bayesian(perceptron(), [])
    assert net.latent_sites == ()
    assert sampled_sites(net, torch.randn(N, 4)).keys() == set(net.dense_sites)


# Priors


def test_priors():
    net = make_bayesian(Tied(), "first", v0=0.2, v1=5.0, dense_scale=0.3)
    found = sampled_sites(net, torch.randn(N, 4))
    assert found["sigma2"]["fn"].concentration == 1.5 and found["sigma2"]["fn"].rate == 2.0
    assert found["first.delta"]["fn"].concentration1 == 2.0
    prior = found["first.weight"]["fn"].base_dist
    assert prior.given == {
        "v0": 0.2,
        "v1": 5.0,
        "delta": found["first.delta"]["value"],
        "sigma": found["sigma2"]["value"].sqrt(),
    }
    dense = found["blocks.0.0.weight"]["fn"]
    assert dense.event_shape == (3, 3) and dense.batch_shape == ()
    assert (dense.base_dist.loc == 0.0).all()
    torch.testing.assert_close(dense.base_dist.scale, torch.full((3, 3), 0.3))


def test_numbers_fix_the_latents():
    x = torch.randn(N, 4)
    net = make_bayesian(perceptron(), delta=0.25, sigma2=4.0)
    assert net.latent_sites == ()
    run = run_kernel(net, x)
    structure = run.kernel.chain.structure
    assert structure.latent_sites == ()
    assert [sigma.fixed for sigma in structure.sigmas] == [2.0]
    assert [delta.fixed for delta in structure.deltas] == [0.25]
    net = make_bayesian(perceptron(), sigma2=4.0)
    assert net.latent_sites == ("0.delta", "2.delta")
    assert make_bayesian(perceptron(), delta=0.25).latent_sites == ("sigma2",)


def test_fixed_parameters_are_no_sites():
    module = Convolutions()
    module.conv.requires_grad_(False)
    net = make_bayesian(module)
    assert set(net.sparse_sites) == {"last.weight"}
    run = run_kernel(net, torch.randn(N, 1, 4, 4))
    assert not any(name.startswith("conv") for name in run.get_samples())
    assert torch.equal(net.module.conv.weight, module.conv.weight)


# What a module does


def test_buffers_move_in_training_mode_only():
    module, x = Convolutions(), torch.randn(N, 1, 4, 4)
    net = make_bayesian(module)
    values = copy_weights(module)
    poutine.condition(net, values)(x)
    module(x)
    assert module.norm.num_batches_tracked == 1
    for name, buffer in module.named_buffers():
        assert torch.equal(net.module.get_buffer(name), buffer), name
    net.eval()
    poutine.condition(net, values)(x)
    assert net.module.norm.num_batches_tracked == 1


def test_the_start_of_a_chain_moves_no_buffers():
    module, x = Convolutions(), torch.randn(N, 1, 4, 4)
    net = make_bayesian(module)
    make_kernel(Classifier(net)).setup(1, x, make_labels())
    for name, buffer in module.named_buffers():
        assert torch.equal(net.module.get_buffer(name), buffer), name


def test_modes_state_and_kind_are_the_inner_modules():
    module = Convolutions().eval()
    net = make_bayesian(module)
    assert not net.training and not net.module.training
    assert net.train().module.norm.training
    assert net.state_dict().keys() == {f"module.{name}" for name in module.state_dict()}
    x = torch.randn(N, 1, 4, 4)
    sampled_sites(net, x)  # what it keeps from a call must not outlive the move
    net.to(torch.float64)
    found = sampled_sites(net, x.double())
    assert all(site["value"].dtype == torch.float64 for site in found.values())
    assert all(site["fn"].sample().dtype == torch.float64 for site in found.values())


def test_first_values_follow_the_module():
    net = make_bayesian(perceptron())
    x = torch.randn(N, 4)
    sampled_sites(net, x)
    net.load_state_dict({name: torch.ones_like(w) for name, w in net.state_dict().items()})
    assert all((net.module.get_parameter(n) == 1.0).all() for n in net.sparse_sites)
    assert (sampled_sites(net, x)["0.weight"]["infer"]["init_value"] == 1.0).all()


def test_a_call_in_inference_mode_does_no_harm():
    net, x = (
        make_bayesian(nn.Linear(4, 17)),
        torch.randn(N, 4),
    )  # a shape that no other test has made
    with torch.inference_mode():
        net(x)
    weight = torch.zeros(17, 4, requires_grad=True)
    bias = torch.zeros(17, requires_grad=True)
    conditioned = poutine.condition(net, {"weight": weight, "bias": bias})
    poutine.trace(conditioned).get_trace(x).log_prob_sum().backward()
    assert weight.grad is not None and bias.grad is not None


class Fussy(nn.Linear):
    """Runs on plain tensors only, as compiled operators do."""

    def forward(self, x):
        assert type(x) is torch.Tensor
        assert type(self.weight) in (torch.Tensor, nn.Parameter)
        return super().forward(x)


def test_provenance_goes_around_the_module():
    net = make_bayesian(nn.Sequential(Fussy(4, 5), nn.Tanh(), Fussy(5, 3)))
    x = torch.randn(N, 4)
    run = run_kernel(net, x)
    assert set(run.kernel.chain.structure.latent_sites) == {"sigma2", "0.delta", "2.delta"}
    dependencies = get_dependencies(Classifier(net), (x, make_labels()))["prior_dependencies"]
    assert {*net.sparse_sites, *net.dense_sites} <= dependencies["y"].keys()


def test_repr_counts_weights_by_layer():
    module = Convolutions()
    module.norm.requires_grad_(False)
    lines = repr(make_bayesian(module, delta=0.5)).splitlines()
    assert lines[0].startswith("BayesianModule(Convolutions, SSGL(v0=0.1, v1=10, delta=0.5, sigma2")
    rows = [line.split() for line in lines[1:]]
    assert rows == [
        ["layer", "sparse", "dense", "fixed"],
        ["conv", "18", "0", "0"],
        ["norm", "0", "0", "4"],
        ["last", "24", "3", "0"],
        ["all", "42", "3", "4"],
    ]

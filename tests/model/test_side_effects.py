# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The buffers that a model changes, and their sets for chains that step together."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import P, linear_data
from runs import Network as WithDropout
from runs import Stop, StopAt, copy_buffers, make_kernel, make_mcmc, resume_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.side_effects import Buffers, preserve_buffers

CHAINS, DRAWS = 3, 6
X, Y = linear_data(dtype=torch.float64)
NO_LATENTS = {"adaptation": None, "step_size": 1e-4}


class Network(WithDropout):
    """A network with BatchNorm and without dropout, so that all randomness is the chain's."""

    def __init__(self) -> None:
        super().__init__()
        self.drop.p = 0.0


class Counting(nn.Module):
    """A module with buffers: one replaced, one changed in place, one constant, one unset."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("added_to", torch.zeros(()))
        self.register_buffer("stays", torch.ones(2))
        self.register_buffer("none", None)

    def forward(self, x):
        self.replaced = self.replaced + 1.0
        self.added_to.add_(2.0)
        return x * self.stays[0]


@pytest.fixture(autouse=True)
def double():
    """Use double precision: in a few steps, rounding does not grow into a difference."""
    torch.set_default_dtype(torch.float64)


# -- which they are


def test_the_buffers_that_change_are_found_and_left_as_they_were():
    outer = nn.Sequential(Counting(), nn.BatchNorm1d(P), nn.Linear(P, 1))
    own = dict(outer.named_buffers())
    before = copy_buffers(outer)
    with preserve_buffers() as changed:
        outer(X)
        assert outer[0].replaced == 1.0 and outer[0].added_to == 2.0
    names = {(type(module).__name__, name) for module, name in changed}
    averages = ("running_mean", "running_var", "num_batches_tracked")
    assert names == {
        ("Counting", "replaced"),
        ("Counting", "added_to"),
        *(("BatchNorm1d", name) for name in averages),
    }
    for name, buffer in outer.named_buffers():
        assert buffer is own[name] and torch.equal(buffer, before[name])


def test_in_eval_mode_batch_norm_changes_none():
    norm = nn.BatchNorm1d(P).eval()
    with preserve_buffers() as changed:
        norm(X)
    assert changed == []


def test_buffers_are_given_back_after_an_error():
    module = Counting()
    with pytest.raises(KeyError), preserve_buffers():
        module(X)
        raise KeyError
    assert module.replaced == 0.0 and module.added_to == 0.0


def test_inspection_finds_the_buffers_that_a_step_changes():
    network = Network()
    structure = inspect_model(network, (X, Y), {}, adapt=False)
    with preserve_buffers() as changed:
        network(X, Y)
    assert len(changed) == 3 and structure.changed_buffers == tuple(changed)


# -- sets of them


def buffer_places(module: nn.Module) -> list:
    return [(module, "replaced"), (module, "added_to")]


def test_a_compiled_module_in_a_model_is_traced_uncompiled():
    """The compiler cannot follow the exchange of buffers; the steps run the compiled code."""
    module = torch.compile(nn.BatchNorm1d(P), backend="eager")
    module(X)  # compiled before the model is traced

    def model(x):
        weights = pyro.sample("w", dist.Normal(torch.zeros(P), 1.0).to_event(1))
        pyro.factor("fit", -(module(x) @ weights).square().sum())

    run = aeb.MCMC(make_kernel(model, **NO_LATENTS), 2, warmup_steps=0, disable_progbar=True)
    run.run(X)
    assert int(module.num_batches_tracked) == 1 + 2 * 2  # two steps a draw


def test_a_run_changes_the_buffers_it_is_lent_and_returns_them():
    module = Counting()
    buffers = Buffers(buffer_places(module), 2)
    assert [value.tolist() for value in buffers.values()] == [[0.0, 0.0], [0.0, 0.0]]
    after = buffers.run([torch.tensor(5.0), torch.tensor(7.0)], lambda: module(X))
    assert [float(value) for value in after] == [6.0, 9.0]
    assert module.replaced == 0.0 and module.added_to == 0.0


def test_the_modules_have_their_own_again_after_an_error_in_a_run():
    module = Counting()

    def fail():
        module(X)
        raise KeyError

    with pytest.raises(KeyError):
        Buffers(buffer_places(module), 1).run([torch.tensor(5.0), torch.tensor(7.0)], fail)
    assert module.replaced == 0.0 and module.added_to == 0.0


def test_the_last_chains_are_left_in_the_modules():
    module = Counting()
    own = module.replaced
    buffers = Buffers(buffer_places(module), 2)
    buffers.store([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])])
    assert module.replaced == 0.0
    buffers.copy_last_to_modules()
    assert module.replaced == 2.0 and module.added_to == 4.0
    assert module.replaced is own


@pytest.mark.parametrize("number", [None, 2])
def test_values_that_are_loaded_are_copies(number):
    module = Counting()
    buffers = Buffers(buffer_places(module), number)
    given = [torch.full_like(value, 3.0) for value in buffers.values()]
    buffers.load(given)
    module(X)
    if number is None:
        assert module.replaced == 4.0 and module.added_to == 5.0
    assert all((value == 3.0).all() for value in given)


# -- BatchNorm in train mode


@pytest.mark.parametrize("transition", [aeb.SGLD, aeb.SGHMC])
def test_chains_that_step_together_keep_running_averages_of_their_own(transition):
    network = Network()
    run = make_mcmc(
        make_kernel(network, transition, **NO_LATENTS), DRAWS, number=CHAINS, method="vectorized"
    )
    run.run(X, Y)
    together = run.kernel.chain.buffers.values()
    means = []
    for chain in range(CHAINS):
        alone = Network()
        own = make_kernel(alone, transition, **NO_LATENTS)
        own.start(0, chain, (X, Y), {})
        own.advance(run.kernel.chain.step)
        values = own.chain.buffers.values()
        assert len(values) == len(together) == 3
        for stack, value in zip(together, values, strict=True):
            torch.testing.assert_close(stack[chain], value, rtol=1e-9, atol=1e-9)
        means.append(alone.norm.running_mean.clone())
    assert not torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])
    for name, value in copy_buffers(alone).items():  # the last chain's are left in the network
        torch.testing.assert_close(copy_buffers(network)[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_running_averages_go_on_from_a_checkpoint(tmp_path, method):
    def run(network, **options):
        kernel = make_kernel(network, **NO_LATENTS)
        return make_mcmc(kernel, DRAWS, number=CHAINS, method=method, **options)

    whole = Network()
    run(whole).run(X, Y)
    stage = "Sample" if method == "vectorized" else f"Sample [{CHAINS - 1}]"
    path, first = tmp_path / "run.ckpt", Network()
    with pytest.raises(Stop):
        run(first, checkpoint=path, every=1, hook_fn=StopAt(stage, 2)).run(X, Y)
    fresh = Network()  # whose averages are at their first values
    second = resume_mcmc(path, fresh)
    second.run(X, Y)
    for name, value in copy_buffers(whole).items():
        assert torch.equal(copy_buffers(fresh)[name], value), name
    assert not torch.equal(fresh.norm.running_mean, Network().norm.running_mean)

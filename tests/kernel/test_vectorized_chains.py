# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Chains that step together are the chains that each would be alone."""

from __future__ import annotations

import itertools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import shuffling_loader
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    P,
    dense_regression,
    eight_schools,
    loader_regression,
    scale_and_simplex,
    sparse_classification,
    sparse_layers,
    sparse_regression,
)
from pyro.nn import PyroModule, PyroSample
from pyro_runs import ADAPTATION
from refusals import raises_with
from runs import DATA, Network, X, Y, copy_buffers, copy_records, make_kernel, make_mcmc
from scipy.stats import ks_2samp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import CollapseWarning, ModelError, NonFiniteError

CHAINS = 3


def fixed_regression(X, y=None):
    """Delta is a number, sigma is learned."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=0.3, sigma=sigma2.sqrt()))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)


def fixed_sigma(X, y=None):
    """Sigma is a number, delta is learned."""
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=0.7))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, 0.5), obs=y)


def general_sites(X, y=None):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    factor = pyro.sample("factor", dist.LogNormal(0.0, 0.3))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(P)))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(factor * (X @ shares), scale), obs=y)


def masked_regression(X, y=None):
    """The noise of a part of the data is learned from the others."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=0.3, sigma=sigma2.sqrt()))
    with pyro.plate("data", len(X)), pyro.poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)


def per_datum_latents(X, y=None, batch_size=None):
    """A latent for every datum, of which a step sees a part."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0).expand([len(X)]).to_event(1))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(shift[i], 0.5), obs=None if y is None else y[i])


LEARNED = {"adaptation": ADAPTATION}
PLAIN = {"adaptation": None}
CASES = {
    "plates": (sparse_regression, (X, Y), DATA, LEARNED),
    "with replacement": (sparse_regression, (X, Y), DATA, {"minibatches": "replacement"}),
    "layers": (sparse_layers, (X, Y), {}, LEARNED),
    "classes": (sparse_classification, (X, Y), DATA, LEARNED),
    "fixed delta": (fixed_regression, (X, Y), {}, LEARNED),
    "fixed sigma": (fixed_sigma, (X, Y), {}, LEARNED),
    "nothing learned": (sparse_regression, (X, Y), DATA, PLAIN),
    "dense": (dense_regression, (X, Y), DATA, PLAIN),
    "positive and simplex": (general_sites, (X, Y), {}, {**PLAIN, "step_size": 1e-5}),
    "mixture": (scale_and_simplex, (Y,), {}, PLAIN),
    "schools": (eight_schools, (SCHOOLS_SIGMA, SCHOOLS_Y), {}, PLAIN),
    "mask": (masked_regression, (X, Y), {}, LEARNED),
    "a latent a datum": (per_datum_latents, (X, Y), DATA, PLAIN),
    "freeze": (sparse_regression, (X, Y), DATA, {"freeze_after_warmup": True}),
    "left out": (sparse_layers, (X, Y), {}, {"save": ["delta0", "w1_rho"]}),
}
PRUNINGS = {
    f"{kind.__name__}{' frozen' if freeze else ''}{f' by {scope}' if scope else ''}": kind(
        aeb.PruningSchedule(0.6, 0.8, 4),
        freeze=freeze,
        every=2,
        **({"scope": scope} if scope else {}),
    )
    for kind, freeze, scope in itertools.product(
        (aeb.MagnitudePruning, aeb.ProbabilityPruning, aeb.UnitPruning),
        (False, True),
        (None, "layer"),
    )
}


def run_both_ways(make_kernel, *args, **kwargs) -> tuple[dict, dict]:
    """What chains keep that step together, and one after the other; ``of()`` makes the kernel."""
    found = []
    for method in ("vectorized", "sequential"):
        run = make_mcmc(make_kernel(), draws=5, warmup=2, number=CHAINS, method=method)
        run.run(*args, **kwargs)
        found.append(copy_records(run))
    return found[0], found[1]


def assert_alike(found: dict, expected: dict) -> None:
    """Equal up to the rounding of sums in another order, in double precision."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, msg=name, equal_nan=True
        )


@pytest.fixture
def double():
    """Rounding is then too small to grow into a difference within a few steps."""
    torch.set_default_dtype(torch.float64)


def to_double(args: tuple) -> tuple:
    return tuple(value.double() for value in args)


@pytest.mark.parametrize("transition", [aeb.SGLD, aeb.SGHMC])
@pytest.mark.parametrize("name", CASES)
def test_chains_are_those_that_run_alone(double, name, transition):
    model, args, kwargs, options = CASES[name]
    alike = run_both_ways(
        lambda: make_kernel(model, transition, **options), *to_double(args), **kwargs
    )
    assert_alike(*alike)
    for value in alike[0].values():  # and no chain is another one
        if value.is_floating_point() and value.dim() > 1 and len(value) == CHAINS:
            assert not torch.equal(value[0], value[1])


@pytest.mark.parametrize("name", PRUNINGS)
def test_pruned_chains_are_those_that_run_alone(double, name):
    found, expected = run_both_ways(
        lambda: make_kernel(sparse_layers, pruning=PRUNINGS[name]), *to_double((X, Y))
    )
    assert_alike(found, expected)
    weights = found["posterior: w0"]
    assert (weights == 0).any() and (weights != 0).any()
    assert torch.equal(weights == 0, expected["posterior: w0"] == 0)


def test_every_chain_has_an_order_of_the_data_of_its_own(double):
    x, y = to_double((X, Y))

    def loader():
        data = TensorDataset(x, y)
        return DataLoader(data, batch_size=5, shuffle=True)

    found = []
    for method in ("vectorized", "sequential"):
        run = make_mcmc(make_kernel(loader_regression), draws=6, number=CHAINS, method=method)
        run.run(loader())
        found.append(copy_records(run))
    assert_alike(*found)


def test_workers_serve_every_chain():
    runs = []
    for workers in (0, 2):
        run = make_mcmc(make_kernel(loader_regression), draws=3, method="vectorized")
        run.run(DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, num_workers=workers))
        runs.append(copy_records(run))
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name])


def test_buffers_of_every_chain_are_its_own(double):
    """Running averages of a network in train mode; the module is left with the last chain's."""
    x, y = to_double((X, Y))
    network = Network()
    network.drop.p = 0.0
    before = copy_buffers(network)
    options = {"step_size": 1e-5, **PLAIN}
    run = make_mcmc(make_kernel(network, **options), number=CHAINS, method="vectorized")
    run.run(x, y)
    after = copy_buffers(network)
    assert not torch.equal(before["norm.running_mean"], after["norm.running_mean"])
    for chain in range(CHAINS):
        alone = Network()
        alone.drop.p = 0.0
        single = make_kernel(alone, **options)
        single.start(0, chain, (x, y), {})
        for _ in range(11):
            single.advance(2)
        values = run.kernel.chain.buffers.values()
        for stack, value in zip(values, single.chain.buffers.values(), strict=True):
            torch.testing.assert_close(stack[chain], value, rtol=1e-9, atol=1e-9)
    for name, value in copy_buffers(alone).items():
        torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-9)


def test_dropout_is_drawn_for_every_chain():
    seen = []

    class Seeing(Network):
        def forward(self, x, y=None):
            mask = self.drop(torch.ones(50))
            if torch._C._functorch.is_batchedtensor(mask):
                seen.append(torch._C._functorch.get_unwrapped(mask).clone())
            return super().forward(x, y)

    run = make_mcmc(make_kernel(Seeing(), step_size=1e-5, **PLAIN), method="vectorized")
    run.run(X, Y)
    assert len(seen) == 22  # one run of the model a step, for both chains
    assert all(mask.shape == (2, 50) and not torch.equal(*mask) for mask in seen)


def test_a_collapse_in_one_chain_is_warned_of_once():
    def collapsing(X, y=None):
        delta = pyro.sample("delta", dist.Beta(1.0, 5000.0))
        with pyro.plate("features", X.shape[1]):
            beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=1e4, delta=delta, sigma=1.0))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, 100.0), obs=y)

    options = {"adaptation": aeb.StochasticApproximation(1.0), "steps_per_draw": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = make_mcmc(
            make_kernel(collapsing, aeb.SGLD, **options), 60, number=2, method="vectorized"
        )
        run.run(X, torch.zeros_like(Y))
    found = [w for w in caught if issubclass(w.category, CollapseWarning)]
    assert len(found) == 1 and "'delta' has collapsed" in str(found[0].message)


# -- beginnings


def test_first_values_are_those_of_the_chains_alone():
    together = make_kernel()
    together.start(0, range(CHAINS), (X, Y), DATA)
    for chain in range(CHAINS):
        alone = make_kernel()
        alone.start(0, chain, (X, Y), DATA)
        for name, value in alone.chain.values().items():
            assert torch.equal(together.chain.values()[name][chain], value)


def test_initial_params_are_given_by_chain():
    given = {
        "beta": torch.arange(CHAINS * P, dtype=torch.float32).reshape(CHAINS, P),
        "sigma2": torch.tensor([-1.0, 0.0, 1.0]),
    }
    starts = []
    for method in ("vectorized", "sequential"):
        run = make_mcmc(
            make_kernel(step_size=1e-12),
            number=CHAINS,
            method=method,
            initial_params=given,
            warmup=0,
        )
        run.run(X, Y, **DATA)
        starts.append(run.get_samples(group_by_chain=True))
        torch.testing.assert_close(starts[-1]["beta"][:, 0], given["beta"], rtol=1e-4, atol=1e-4)
    for name in starts[0]:
        torch.testing.assert_close(starts[0][name], starts[1][name], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="must match the number of chains"):
        make_mcmc(number=2, initial_params=given)


# -- what cannot be


def branching_model(X, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    mean = w if w > 0 else 2 * w
    pyro.sample("y", dist.Normal(mean.expand(len(X)), 1.0).to_event(1), obs=y)


def item_model(X, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    mean = w + 0.0 * w.item()  # on which the density does not depend
    pyro.sample("y", dist.Normal(mean, 1.0).expand([len(X)]).to_event(1), obs=y)


class Recurrent(PyroModule):
    def __init__(self):
        super().__init__()
        self.cell = PyroModule[nn.LSTM](1, 2, batch_first=True)
        shape = self.cell.weight_ih_l0.shape
        self.cell.weight_ih_l0 = PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(2))

    def forward(self, x, y=None):
        h, _ = self.cell(x[..., None])
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(h[:, -1, 0], 1.0), obs=y)


@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize("make", [lambda: branching_model, lambda: item_model, Recurrent])
def test_a_model_that_vmap_cannot_run_is_told_the_cure(make):
    with raises_with("for several chains at once", 'chain_method="sequential"', error=ModelError):
        make_mcmc(make_kernel(make(), **PLAIN), method="vectorized").run(X, Y)
    make_mcmc(make_kernel(make(), **PLAIN)).run(X, Y)


def test_an_error_of_the_models_own_stays_its_own():
    def wrong(X, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        if torch._C._functorch.is_batchedtensor(w):
            raise RuntimeError("of my own")
        pyro.sample("y", dist.Normal(X @ w, 1.0).to_event(1), obs=y)

    with pytest.raises(RuntimeError, match="^of my own$"):
        make_mcmc(make_kernel(wrong, **PLAIN), method="vectorized").run(X, Y)


def test_a_blow_up_says_in_which_chain():
    given = {"w": torch.zeros(CHAINS, P)}
    given["w"][1] = 1e18
    run = make_mcmc(
        make_kernel(dense_regression, aeb.SGLD, step_size=1e9, **PLAIN, steps_per_draw=1),
        number=CHAINS,
        method="vectorized",
        initial_params=given,
        warmup=0,
    )
    with raises_with("of chain 1 is not finite", "step size", error=NonFiniteError):
        run.run(X, Y)


def test_batches_that_cannot_be_stacked_are_told_of():
    with raises_with("cannot be stacked", "drop_last=True", error=ModelError):
        run = make_mcmc(make_kernel(loader_regression), number=2, method="vectorized")
        data = DataLoader(TensorDataset(X, Y), batch_sampler=Uneven())
        run.run(data)


class Uneven:
    """Batches of random sizes."""

    def __iter__(self):
        for _ in range(4):
            yield list(range(2 + int(torch.randint(5, ()))))

    def __len__(self):
        return 4


def test_persistent_workers_are_told_of():
    loader = shuffling_loader(num_workers=1, persistent_workers=True)
    with raises_with("persistent_workers=True", 'chain_method="sequential"', error=ModelError):
        make_mcmc(make_kernel(loader_regression), method="vectorized").run(loader)


# -- the law, without a seed


@pytest.mark.slow
def test_the_law_is_that_of_chains_alone():
    """
    Ends of chains of each kind, more of those that cost little (as telling as 200 of each):
    Kolmogorov and Smirnov's test, at a level of 1e-4 a site.
    """
    ends = []
    for method, seed, number in (("vectorized", 1, 400), ("sequential", 2, 134)):
        pyro.set_rng_seed(seed)
        kernel = make_kernel(step_size=5e-3, seed=None, steps_per_draw=1)
        run = make_mcmc(kernel, draws=1, warmup=60, number=number, method=method)
        run.run(X, Y, **DATA)
        ends.append({n: v[:, -1] for n, v in run.get_samples(group_by_chain=True).items()})
    columns = {"sigma2": (), "delta": (), **{f"beta {j}": j for j in range(P)}}
    for name, j in columns.items():
        site = name.split()[0]
        one, other = ((end[site] if site != "beta" else end[site][:, j]).numpy() for end in ends)
        assert (len(one), len(other)) == (400, 134)
        assert ks_2samp(one, other).pvalue > 1e-4, name

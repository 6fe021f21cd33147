# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs that fail at any step, and runs of unusual sizes and dtypes. The error says where, the draws
before it are kept, and the kernel continues with the draws of one that has never failed.
"""

from __future__ import annotations

import math
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from fuzzing import fewer_examples
from hypothesis import given
from hypothesis import strategies as st
from models import N, P, double_regression, linear_data, sparse_regression
from refusals import X, Y, count_refusal, raises_with
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import ModelError, NonFiniteError

METHODS = ("sequential", "vectorized", "parallel")
ADAPTATIONS = (None, aeb.StochasticApproximation(0.3))


class Broken(Exception):
    """A user's own error."""


class _BadGradient(torch.autograd.Function):
    """The identity, whose derivative is NaN."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class Fails:
    """Sparse regression that fails in one of several ways, once it is armed."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.armed = False
        self.error = Broken("disk full")

    def __call__(self, X, y=None):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        prior = aeb.SSGL(0.1, 10.0, delta, sigma2.sqrt()).expand([X.shape[1]]).to_event(1)
        beta = pyro.sample("beta", prior)
        if self.armed and self.how == "error":
            raise self.error
        mean = X @ beta
        if self.armed and self.how == "model":
            mean = mean * math.nan
        if self.armed and self.how == "one datum":
            mean = mean + torch.where(torch.arange(len(X)) == 0, math.inf, 0.0)
        if self.armed and self.how == "gradient":
            mean = _BadGradient.apply(mean)
        with pyro.plate("data", N, subsample=X):
            return pyro.sample("y", dist.Normal(mean, sigma2.sqrt()), obs=y)

    def hook(self, at: int):
        """Return a hook that arms the model after draw number ``at``, counted from 0."""

        def arm(kernel, draw, stage, i):
            self.armed = self.armed or i == at

        return arm


transitions = st.sampled_from([aeb.SGLD(1e-3), aeb.SGHMC(1e-4)])


def make_kernel(model, transition=aeb.SGLD(1e-3), adaptation=ADAPTATIONS[1], **options):  # noqa: B008
    return aeb.AEBKernel(model, transition, adaptation, **{"seed": 3, **options})


def run_mcmc(kernel: aeb.AEBKernel, draws: int, *args, **options) -> aeb.MCMC:
    run = aeb.MCMC(kernel, draws, 0, **{"disable_progbar": True, **options})
    run.run(*(args or (X, Y)))
    return run


def assert_same_draws(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@fewer_examples(2)
@given(
    st.sampled_from(["model", "one datum", "gradient", "error"]),
    st.integers(2, 12),
    st.integers(1, 3),
    transitions,
    st.sampled_from(ADAPTATIONS),
    st.booleans(),
)
def test_a_failure_at_any_step(how, draw, steps, transition, adaptation, with_loader):
    model = Fails(how)
    kernel = make_kernel(model, transition, adaptation, steps_per_draw=steps)
    args = (DataLoader(TensorDataset(X, Y), 6, shuffle=True),) if with_loader else (X, Y)
    failing = aeb.MCMC(kernel, 100, 0, hook_fn=model.hook(draw - 2), disable_progbar=True)
    with pytest.raises((NonFiniteError, Broken)) as info:
        failing.run(*args)
    if how == "error":
        assert info.value is model.error
    else:
        assert info.value.step == steps * (draw - 1) + 1
        assert info.value.site in ("beta", "sigma2", None)
        assert_same_draws(info.value.draws, {n: v for n, v in failing.get_samples().items()})
        count_refusal(info.value)
    kept = failing.get_samples()
    assert all(v.shape[0] == draw - 1 and v.isfinite().all() for v in kept.values())
    assert_same_draws(kept, kernel.recover())

    model.armed = False
    fresh = make_kernel(Fails(how), transition, adaptation, steps_per_draw=steps)
    whole = run_mcmc(fresh, 14, *args).get_samples()
    assert_same_draws(kept, {name: value[: draw - 1] for name, value in whole.items()})
    assert_same_draws(
        run_mcmc(kernel, 14, *args).get_samples(), whole
    )  # the same kernel, in a run of its own


@fewer_examples(8)
@given(st.integers(0, N - 1), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_a_datum_that_is_not_finite_anywhere_in_a_loader(at, bad, in_x):
    x, y = X.clone(), Y.clone()
    (x if in_x else y)[at] = bad
    model = Fails("never")
    kernel = make_kernel(model)
    try:
        run_mcmc(kernel, 20, DataLoader(TensorDataset(x, y), batch_size=4))
    except ModelError as error:  # in the first batch, which is checked before any step
        assert at < 4 and "non-finite" in str(error)
        count_refusal(error)
    except NonFiniteError as error:
        assert error.step == at // 4 + 1
        assert f"argument {0 if in_x else 1} of this batch has" in str(error)
        count_refusal(error)
    else:
        pytest.fail("a number that is not finite went through")
    assert_same_draws(
        run_mcmc(kernel, 3).get_samples(), run_mcmc(make_kernel(Fails("never")), 3).get_samples()
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_of_a_loader_are_gone_after_an_error_of_the_models(workers):
    import multiprocessing

    before = {*multiprocessing.active_children()}
    model = Fails("error")
    loader = DataLoader(TensorDataset(X, Y), 4, num_workers=workers)
    run = aeb.MCMC(make_kernel(model), 50, 0, hook_fn=model.hook(2), disable_progbar=True)
    with pytest.raises(Broken):
        run.run(loader)
    assert {*multiprocessing.active_children()} <= before


# Determinism


@fewer_examples(8)
@given(st.integers(-(2**70), 2**70), st.sampled_from(METHODS[:2]), st.booleans(), transitions)
def test_a_seed_gives_the_same_draws_twice(seed, method, batches, transition):
    def draws():
        kernel = make_kernel(sparse_regression, transition, seed=seed)
        run = aeb.MCMC(kernel, 4, 1, num_chains=2, chain_method=method, disable_progbar=True)
        run.run(X, Y, **({"batch_size": 7} if batches else {}))
        return run.get_samples(group_by_chain=True)

    first = draws()
    torch.rand(3)  # advances the global generator
    assert_same_draws(first, draws())
    assert not torch.equal(first["beta"][0], first["beta"][1])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, context", [(None, "spawn"), (5, "forkserver")])
def test_spawned_chains_are_those_of_one_process(batch_size, context):
    """A fork of a server gets what it runs by pickling, too, and begins sooner."""

    def draws(method):
        kernel = make_kernel(sparse_regression, aeb.SGHMC(1e-4), steps_per_draw=2)
        options = {"chain_method": method, "num_chains": 2, "mp_context": context}
        run = aeb.MCMC(kernel, 6, 2, disable_progbar=True, **options)
        run.run(X, Y, batch_size=batch_size)
        return run.get_samples(group_by_chain=True)

    assert_same_draws(draws("sequential"), draws("parallel"))


# Sizes


def scalar_weight(X, y):
    """Regression with one scalar weight."""
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X[:, 0] * beta, 1.0), obs=y)


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=["sampled", "learned"])
@pytest.mark.parametrize("n, p", [(1, 1), (1, 3), (20, 1)])
def test_one_datum_or_one_weight(n, p, adaptation, method):
    x, y = linear_data(n, p)
    kernel = make_kernel(sparse_regression, adaptation=adaptation)
    run = run_mcmc(kernel, 5, x, y, num_chains=2, chain_method=method)
    assert run.get_samples()["beta"].shape == (10, p)
    assert all(value.isfinite().all() for value in run.get_samples().values())


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("pruning", [None, aeb.MagnitudePruning(0.5), aeb.UnitPruning(0.5)])
@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=["sampled", "learned"])
def test_a_weight_that_is_a_number(method, pruning, adaptation):
    if pruning is not None and adaptation is None:
        pruning = type(pruning)(pruning.sparsity, sites="beta")
    kernel = make_kernel(scalar_weight, adaptation=adaptation, pruning=pruning)
    options = {"num_chains": 2, "chain_method": method}
    run = run_mcmc(kernel, 5, X, Y, **options)
    assert run.get_samples(group_by_chain=True)["beta"].shape == (2, 5)
    assert run.get_samples()["beta"].isfinite().all()
    aeb.to_arviz(run)


def test_a_batch_without_data():
    batches = [(X[:5], Y[:5]), (X[5:10], Y[5:10]), (X[:0], Y[:0])]
    kernel = make_kernel(Fails("never"))
    with raises_with("batch 3 of epoch 1", "no data", "at least one datum"):
        run_mcmc(kernel, 10, DataLoader(batches, batch_size=None))
    assert kernel.recover()["beta"].shape == (2, P)
    with raises_with("batch 1 of epoch 1", "no data", "at least one datum"):
        run_mcmc(kernel, 10, DataLoader(batches[::-1], batch_size=None))


def model_with_sites(sites: int, prior):
    def model(y):
        values = [pyro.sample(f"w{i}", prior()) for i in range(sites)]
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(torch.stack(values).sum(), 1.0), obs=y)

    return model


PRIORS = {
    "normal": lambda: dist.Normal(0.0, 1.0),
    "SSGL": lambda: aeb.SSGL(0.1, 10.0, 0.5),
    "positive": lambda: dist.HalfNormal(1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS)
def test_the_time_to_start_is_linear_in_the_number_of_sites(prior):
    """Four times the sites take four times as long; work on all pairs would take 16 times."""

    def seconds(sites: int) -> float:
        kernel = make_kernel(model_with_sites(sites, PRIORS[prior]), aeb.SGLD(1e-6))
        before = time.process_time()
        run_mcmc(kernel, 1, torch.zeros(3))
        return time.process_time() - before

    seconds(10)  # imports
    assert seconds(2000) < 8 * seconds(500)


# Dtypes


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("transition", [aeb.SGLD(1e-3), aeb.SGHMC(1e-4)], ids=["SGLD", "SGHMC"])
def test_double_precision_throughout(method, transition):
    kernel = make_kernel(double_regression, transition, pruning=aeb.MagnitudePruning(0.3))
    run = run_mcmc(kernel, 5, X.double(), Y.double(), num_chains=2, chain_method=method)
    assert {value.dtype for value in run.get_samples().values()} == {torch.float64}
    assert run.diagnostics() is not None
    single = run_mcmc(make_kernel(double_regression, transition, pruning=kernel.pruning), 5, X, Y)
    assert {value.dtype for value in single.get_samples().values()} == {torch.float32}


class Autocast:
    """Regression whose product is computed in half precision."""

    def __init__(self, dtype: torch.dtype, back: bool) -> None:
        self.dtype, self.back = dtype, back

    def __call__(self, X, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
        with torch.autocast("cpu", dtype=self.dtype):
            mean = X @ w[:, None]
            assert mean.dtype == self.dtype
            mean = mean[:, 0].float() if self.back else mean[:, 0]
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(mean, torch.tensor(0.5)), obs=y)


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("back", [True, False], ids=["float mean", "half mean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_inside_the_model(dtype, back, method):
    """Draws are in single precision, and differ from full precision by rounding of the mean."""
    options = {"num_chains": 2, "chain_method": method}
    draws = run_mcmc(make_kernel(Autocast(dtype, back)), 30, X, Y, **options).get_samples()["w"]
    full = run_mcmc(make_kernel(Autocast(torch.float32, back)), 30, X, Y, **options).get_samples()[
        "w"
    ]
    assert draws.dtype == torch.float32 and draws.isfinite().all()
    assert not torch.equal(draws, full)
    # Relative errors of 2^-9 (bfloat16) of means of about 5, contracted towards the mode.
    assert (draws - full).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision_are_refused(dtype):
    def model(y):
        one = torch.ones((), dtype=dtype)
        w = pyro.sample("w", dist.Normal(0.0 * one, one).expand([P]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w.sum(), one), obs=y)

    with raises_with(str(dtype), "expected", "float32", error=ModelError):
        run_mcmc(make_kernel(model), 3, Y.to(dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool], ids=str)
def test_whole_or_complex_numbers_for_data(dtype):
    """Integers are accepted if the model converts them; other dtypes are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = X.to(dtype)
    with raises_with("'X'", str(dtype), error=ModelError):
        run_mcmc(make_kernel(sparse_regression), 3, x, Y)

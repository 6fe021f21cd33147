# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Latent sites that updates of their own learn, in runs of the kernel."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_aeb as aeb
from pyro_aeb.errors import ModelError
from pyro_aeb.latents import AveragedStatistics, ClosedForm, GradientStep, LatentUpdate, Seen

CLOSED = ClosedForm()
N = 60


def make_data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, 2, generator=generator)
    return x, x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(N, generator=generator)


def run_mcmc(model, *args, latents, weight=1.0, draws=1, seed=0, **options):
    adaptation = aeb.StochasticApproximation(weight, latents=latents)
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-4), adaptation, seed=seed)
    mcmc = aeb.MCMC(kernel, draws, warmup_steps=0, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc


# -- closed forms against the textbook -------------------------------------------------------------


def conjugate_model(x, counts):
    """Four conjugate pairs; z is there to be sampled."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 1.5, 3.0])))
    chance = pyro.sample("chance", dist.Beta(2.0, 3.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("class", dist.Categorical(shares), obs=counts)
        pyro.sample("large", dist.Bernoulli(chance), obs=(counts > 0).float())
        pyro.sample("count", dist.Poisson(rate), obs=counts.float())
        pyro.sample("x", dist.Normal(mean, 0.5), obs=x)


def test_maximisers_are_the_modes_of_the_textbook():
    x, counts = torch.randn(N) + 3.0, torch.randint(3, (N,))
    names = ("shares", "chance", "rate", "mean")
    mcmc = run_mcmc(conjugate_model, x, counts, latents=dict.fromkeys(names, CLOSED))
    found = {name: draws[-1] for name, draws in mcmc.get_samples().items()}
    each = torch.bincount(counts, minlength=3)
    expected = {
        "shares": (each + torch.tensor([1.0, 0.5, 2.0])) / (N + 3.5),
        "chance": ((counts > 0).sum() + 1.0) / (N + 3.0),
        "rate": (counts.sum() + 1.0) / (N + 1.5),
        "mean": (1.0 / 4.0 + x.sum() / 0.25) / (1.0 / 4.0 + N / 0.25),
    }
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def scales_model(x, y, batch_size=None):
    """Precisions of weights, the variance of noise, and a mean."""
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), precision.rsqrt()).to_event(1))
    variance = pyro.sample("variance", dist.InverseGamma(2.0, 2.0))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(x[i] @ w, variance.sqrt()), obs=y[i])


def test_precisions_and_variances_follow_the_weights():
    x, y = make_data()
    start = torch.tensor([0.3, -0.7])
    adaptation = aeb.StochasticApproximation(1.0, latents={"precision": CLOSED, "variance": CLOSED})
    kernel = aeb.AEBKernel(scales_model, aeb.SGLD(1e-5), adaptation, seed=0)
    mcmc = aeb.MCMC(kernel, 1, warmup_steps=0, initial_params={"w": start}, disable_progbar=True)
    mcmc.run(x, y)
    found = mcmc.get_samples()
    # Gamma(2, 1) and Normal(0, precision^-1/2): shape 2 + 1/2, rate 1 + w^2 / 2
    torch.testing.assert_close(
        found["precision"][0], 1.5 / (1.0 + start.square() / 2), rtol=1e-4, atol=0.0
    )
    square = (y - x @ start).square().sum()
    expected = (2.0 + square / 2) / (3.0 + N / 2)
    torch.testing.assert_close(found["variance"][0], expected, rtol=1e-4, atol=0.0)


def test_a_batch_stands_for_the_whole_data_set():
    """Closed forms see N / n times the batch."""
    seen: list[Seen] = []

    def model(x, batch_size):
        chance = pyro.sample("chance", dist.Beta(2.0, 2.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=batch_size) as i:
            pyro.sample("x", dist.Bernoulli(chance), obs=x[i])
            pyro.deterministic("ones", x[i].sum())

    def watch(found):
        seen.append(found)
        return found.value

    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    mcmc = run_mcmc(model, x, 2, latents={"chance": watch}, draws=3)
    assert sum(float(found.statistics["ones"]) for found in seen) == 3.0 * float(x.sum())
    assert (mcmc.get_samples()["chance"] == 0.5).all()
    mcmc = run_mcmc(model, x, 2, latents={"chance": CLOSED}, draws=3)
    ones = torch.tensor([float(found.statistics["ones"]) for found in seen])
    torch.testing.assert_close(mcmc.get_samples()["chance"], (1.0 + ones) / (2.0 + 6.0))


# -- the contract ----------------------------------------------------------------------------------


def test_a_weight_of_a_half_moves_half_of_the_way():
    mcmc = run_mcmc(scales_model, *make_data(), latents={"variance": lambda seen: seen.value + 2.0},
                    weight=0.5, draws=3)  # fmt: skip
    first = 1.0  # the middle of unconstrained space
    expected = torch.tensor([first + 1.0, first + 2.0, first + 3.0])
    torch.testing.assert_close(mcmc.get_samples()["variance"], expected)


def test_an_update_sees_all_values():
    found = {}

    def watch(seen):
        found.update(seen.values)
        return seen.value

    run_mcmc(scales_model, *make_data(), latents={"variance": watch})
    assert {name: value.shape for name, value in found.items()} == {
        "precision": (2,),
        "w": (2,),
        "variance": (),
    }


class Doubling(LatentUpdate):
    """An update of a user's own, with a first value and a derivative."""

    derivatives = 1

    def init(self, value):
        return value + 4.0

    def update(self, seen):
        assert seen.gradient.shape == seen.value.shape and seen.curvature is None
        return 2.0 * seen.value


def test_an_update_of_ones_own():
    mcmc = run_mcmc(scales_model, *make_data(), latents={"variance": Doubling()}, draws=2)
    torch.testing.assert_close(mcmc.get_samples()["variance"], torch.tensor([10.0, 20.0]))


def test_the_gradient_is_that_of_the_log_joint_density():
    x, y = make_data()
    seen = []

    class Watch(LatentUpdate):
        derivatives = 1

        def update(self, found):
            seen.append(found)
            return found.value

    run_mcmc(scales_model, x, y, latents={"variance": Watch()})
    (found,) = seen
    variance, square = 1.0, (y - x @ found.values["w"]).square().sum()
    prior = -3.0 / variance + 2.0 / variance**2
    expected = prior - N / (2 * variance) + square / (2 * variance**2)
    torch.testing.assert_close(found.gradient, expected)


def test_gradient_steps_and_closed_forms_end_at_the_same_value():
    closed = run_mcmc(
        scales_model, *make_data(), latents={"variance": CLOSED}, weight=0.05, draws=600
    )
    steps = run_mcmc(
        scales_model, *make_data(), latents={"variance": GradientStep(0.03)}, weight=1.0, draws=600
    )
    ends = [float(m.get_samples()["variance"][-300:].mean()) for m in (closed, steps)]
    # Both follow weights that move by their posterior spread; a tenth is several times of it.
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


def test_they_are_traced_as_learned():
    mcmc = run_mcmc(scales_model, *make_data(), latents={"variance": CLOSED}, draws=3)
    assert mcmc.kernel.metadata()["roles"]["variance"] == "stochastic approximation"
    assert mcmc.kernel.metadata()["roles"]["precision"] == "draw"
    assert aeb.to_arviz(mcmc).posterior["variance"].shape == (1, 3)


def test_beside_the_latents_of_ssgl_sites():
    def model(x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 2.0))
        beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, 0.5, sigma2.sqrt()).expand([2]).to_event(1))
        shift = pyro.sample("shift", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(x @ beta + shift, sigma2.sqrt()).to_event(1), obs=y)

    x, y = make_data()
    samples = run_mcmc(model, x, y + 5.0, latents={"shift": CLOSED}, draws=300).get_samples()
    assert samples.keys() == {"beta", "shift", "sigma2"}
    assert float(samples["shift"][-1]) == pytest.approx(5.0, abs=0.5)


# -- chains, checkpoints, ranks --------------------------------------------------------------------


@pytest.mark.parametrize("update", [CLOSED, GradientStep(0.01), lambda seen: seen.value * 1.01])
def test_chains_that_step_together_are_those_that_step_one_by_one(update):
    def draws(method):
        mcmc = run_mcmc(scales_model, *make_data(), 20, latents={"variance": update}, weight=0.3,
                        draws=5, num_chains=3, chain_method=method)  # fmt: skip
        return mcmc.get_samples(group_by_chain=True)

    one_by_one, together = draws("sequential"), draws("vectorized")
    for name, values in one_by_one.items():
        torch.testing.assert_close(together[name], values, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    def start(draws, **options):
        return run_mcmc(scales_model, *make_data(), 20, latents={"variance": CLOSED}, weight=0.3,
                        draws=draws, **options).get_samples()  # fmt: skip

    whole = start(8)
    adaptation = aeb.StochasticApproximation(0.3, latents={"variance": CLOSED})
    kernel = aeb.AEBKernel(scales_model, aeb.SGLD(1e-4), adaptation, seed=0)
    mcmc = aeb.MCMC(kernel, 8, warmup_steps=0, checkpoint=tmp_path / "run", every=1,
                    disable_progbar=True, hook_fn=lambda *a: stop())  # fmt: skip
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        mcmc.run(*make_data(), 20)
    resumed = aeb.MCMC.resume(tmp_path / "run", scales_model, disable_progbar=True)
    resumed.run(*make_data(), 20)
    for name, values in whole.items():
        assert torch.equal(resumed.get_samples()[name], values)


# -- refused ---------------------------------------------------------------------------------------


def assert_refused(latents, words, model=scales_model, kind=ModelError):
    with pytest.raises(kind, match=words):
        run_mcmc(model, *make_data(), latents=latents)


def test_a_site_that_is_not_there():
    assert_refused({"tau": CLOSED}, "latents names 'tau', which is no latent site.*'precision'")


def test_something_that_is_no_update():
    assert_refused({"variance": 3.0}, r"latents\['variance'\] is 3.0, expected", kind=TypeError)
    assert_refused(
        {"variance": ClosedForm}, "is the class ClosedForm, expected an instance", kind=TypeError
    )


def test_an_update_without_its_method():
    class Empty(LatentUpdate):
        pass

    class Half(AveragedStatistics):
        def statistics(self, seen):
            return seen.value

    class OtherHalf(AveragedStatistics):
        def maximiser(self, statistics):
            return statistics

    for update, method in (
        (Empty(), r"Empty has no update\(seen\)"),
        (Half(), r"Half has no maximiser\(statistics\)"),
        (OtherHalf(), r"OtherHalf has no statistics\(seen\)"),
    ):
        assert_refused(
            {"variance": update}, f"{method} of its own, expected", kind=NotImplementedError
        )


def test_a_prior_that_is_not_conjugate():
    def model(x, y):
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))  # a standard deviation
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, scale).to_event(1), obs=y)

    assert_refused(
        {"scale": CLOSED}, "'scale' ~ Gamma: its prior is not conjugate.*GradientStep", model
    )
    run_mcmc(model, *make_data(), latents={"scale": GradientStep(1e-3)})


def test_a_prior_with_no_form():
    def model(x, y):
        rate = pyro.sample("rate", dist.Exponential(1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), rate.rsqrt()).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)

    assert_refused({"rate": CLOSED}, "latent 'rate' ~ Exponential, which has no closed-form", model)


def test_a_value_of_another_shape():
    words = r"'variance' returned shape \(3,\), expected a tensor of shape \(\)"
    assert_refused({"variance": lambda seen: torch.ones(3)}, words)
    assert_refused({"variance": lambda seen: 2.0}, "'variance' returned 2.0, expected a tensor")


def test_a_latent_of_the_ssgl_prior():
    def model(x, y):
        delta = pyro.sample("delta", dist.Beta(1.0, 2.0))
        beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x @ beta, 1.0).to_event(1), obs=y)

    assert_refused(
        {"delta": CLOSED}, "'delta', which is an SSGL site or a latent of its prior", model
    )


def test_a_gradient_that_does_not_reach_the_latent():
    def model(x, y):
        variance = pyro.sample("variance", dist.InverseGamma(2.0, 2.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, float(variance) ** 0.5).to_event(1), obs=y)

    assert_refused(
        {"variance": GradientStep(0.1)}, "depends on site .variance. without a gradient", model
    )

# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Control variates are unbiased and of small variance, over all minibatches."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_aeb import SGHMC, SGLD, SSGL, AEBKernel, StochasticApproximation
from pyro_aeb.posterior.step_target import StepTarget
from pyro_aeb.testing import minibatches
from pyro_aeb.transitions import SVRG, StepNumbers

N, n, P = 7, 2, 3


def classification(x, y, batch=None):
    """A likelihood that is not quadratic, one SSGL site and one with a Normal prior."""
    with pyro.plate("features", P):
        beta = pyro.sample(
            "beta", SSGL(v0=0.1, v1=10.0, delta=0.5, sigma=torch.ones((), dtype=x.dtype))
        )
    bias = pyro.sample("bias", dist.Normal(0.0, torch.ones((), dtype=x.dtype)))
    with pyro.plate("data", N, subsample_size=batch) as i:
        pyro.sample("y", dist.Bernoulli(logits=x[i] @ beta + bias), obs=y[i])


def regression(x, y, batch=None):
    """Its sigma is learned, and is in the likelihood."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    with pyro.plate("features", P):
        beta = pyro.sample("beta", SSGL(v0=0.1, v1=10.0, delta=0.5, sigma=sigma2.sqrt()))
    with pyro.plate("data", N, subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(x[i] @ beta, sigma2.sqrt()), obs=y[i])


def start_chain(model):
    torch.set_default_dtype(torch.float64)
    x, y = torch.randn(N, P), (torch.randn(N) > 0).double()
    kernel = AEBKernel(
        model, SVRG(SGLD(1.0), every=5), adaptation=StochasticApproximation(0.0), seed=1
    )
    kernel.setup(0, x, y, n)
    return kernel.chain


def make_target(chain, step, indices=None, latents=None):
    batch = chain.data.next()
    batch = batch if indices is None else batch._replace(indices=indices)
    cover, buffers = chain.data.cover, chain.buffers
    return StepTarget(chain.posterior, latents or chain.latents, batch, step, cover, buffers)


def used_gradient(chain, state, step, indices, latents=None):
    """The gradient that a step moves by: a step of SGLD of size 1 without noise."""
    q = make_target(chain, step, indices, latents)
    transition, still = SVRG(SGLD(1.0), every=5), torch.zeros_like(state.position)
    after = transition.move(state, q.batch(state.position), still, StepNumbers(1.0, 1.0), q)
    return after.position - state.position


def all_batches(chain):
    return list(minibatches(chain.structure.plates))


@pytest.mark.parametrize("model", [classification, regression])
def test_over_all_minibatches_it_is_unbiased_and_its_variance_falls_with_the_distance(model):
    chain = start_chain(model)
    anchor, direction = torch.randn(2, chain.state.position.shape[-1])
    whole = make_target(chain, 1).whole(anchor, prior=False).gradient
    variances, distances = [], (1.0, 0.1, 0.01)
    for distance in distances:
        position = anchor + distance * direction
        state = chain.state._replace(position=position, anchor=anchor, whole=whole)
        found = torch.stack([used_gradient(chain, state, 2, own) for own in all_batches(chain)])
        expected = make_target(chain, 2).whole(position).gradient
        torch.testing.assert_close(found.mean(0), expected, rtol=1e-11, atol=1e-11)
        plain = [make_target(chain, 2, own).batch(position).gradient for own in all_batches(chain)]
        variances.append(float(found.var(0).sum() / torch.stack(plain).var(0).sum()))
    # A hundredth of the distance is a ten-thousandth of the variance.
    assert variances[1] / variances[2] == pytest.approx(100.0, rel=0.2)
    assert variances[2] < 1e-3


def test_every_fifth_step_moves_the_anchor():
    chain = start_chain(classification)
    states = [chain.state]
    transition, numbers = SVRG(SGLD(1e-2), every=5), StepNumbers(1e-2, 1.0)
    for k in range(1, 12):
        q, state = make_target(chain, k), states[-1]
        noise = torch.randn_like(state.position)
        states.append(transition.move(state, q.batch(state.position), noise, numbers, q))
    for k, state in enumerate(states[1:], 1):
        at = (k - 1) // 5 * 5  # steps 1, 6 and 11 set the anchor where they begin
        assert torch.equal(state.anchor, states[at].position)
        expected = make_target(chain, k).whole(states[at].position, prior=False).gradient
        torch.testing.assert_close(state.whole, expected, rtol=1e-12, atol=1e-12)


def test_a_moving_sigma_biases_by_the_change_of_the_anchors_gradient():
    chain = start_chain(regression)
    anchor = torch.randn(P)
    position = anchor + 0.1 * torch.randn(P)
    whole = make_target(chain, 1).whole(anchor, prior=False).gradient
    moved = chain.latents._replace(ssgl=chain.latents.ssgl._replace(sigma=1.1 * chain.ssgl.sigma))
    state = chain.state._replace(position=position, anchor=anchor, whole=whole)
    found = torch.stack(
        [used_gradient(chain, state, 2, own, moved) for own in all_batches(chain)]
    ).mean(0)
    bias = found - make_target(chain, 2, latents=moved).whole(position).gradient
    # The gradient is proportional to 1 / sigma^2, which is 1.21 times larger since.
    torch.testing.assert_close(bias, whole * (1 - 1 / 1.21), rtol=1e-9, atol=1e-9)

    # Delta, rho and the penalties are not in it: no bias.
    ssgl = chain.ssgl
    others = {name: getattr(ssgl, name) * 0.5 for name in ("rho", "slab", "delta")}
    moved = chain.latents._replace(ssgl=ssgl._replace(**others))
    found = torch.stack(
        [used_gradient(chain, state, 2, own, moved) for own in all_batches(chain)]
    ).mean(0)
    expected = make_target(chain, 2, latents=moved).whole(position).gradient
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_the_state_is_the_inner_one_and_two_vectors():
    state = SVRG(SGHMC(0.1), every=3).init(torch.ones(2))
    assert state._fields == ("position", "momentum", "anchor", "whole")
    assert state.held == ("momentum",)
    assert "SVRGState(position=" in repr(state)


@pytest.mark.parametrize("every", [0, 2.5, True, None])
def test_junk_is_refused(every):
    with pytest.raises(
        ValueError, match="expected an integer of at least 1, the steps between anchors"
    ):
        SVRG(SGLD(0.1), every)

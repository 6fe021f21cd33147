# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Groups of weights with one gamma. Their M-steps are in ``test_prior_m_steps.py``."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from prior_families import FAMILIES
from pyro import poutine

from pyro_aeb import SSGL, StochasticApproximation
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.errors import ModelError
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.sites import unwrap
from pyro_aeb.model.structure import Delta, Sigma, SparseBlock, Structure
from pyro_aeb.priors import Group
from pyro_aeb.priors.group import group_size


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


def test_the_density_is_a_mixture_over_whole_groups(family):
    delta = torch.rand(4, 1).double()
    sigma = 0.5 + torch.rand(4, 3).double()
    prior = Group(family.prior(delta, sigma))
    assert prior.batch_shape == (4,) and prior.event_shape == (3,)
    value = torch.randn(5, 4, 3).double()
    spike, slab = (f(sigma).log_prob(value).sum(-1).exp() for f in (family.spike, family.slab))
    d = delta.squeeze(-1)
    expected = (1 - d) * spike + d * slab
    torch.testing.assert_close(prior.log_prob(value), expected.log())
    torch.testing.assert_close(prior.inclusion(value), d * slab / expected)


def test_groups_of_one_are_the_prior_itself(family):
    prior = family.prior(torch.rand(4, 1).double(), 2.0)
    value = torch.randn(4, 1).double()
    grouped = Group(prior)
    torch.testing.assert_close(grouped.log_prob(value), prior.log_prob(value).squeeze(-1))
    torch.testing.assert_close(grouped.inclusion(value), prior.inclusion(value).squeeze(-1))


def test_a_sample_has_one_gamma_a_group():
    # Scales so different that the size tells the component, but for the share of the slab near 0.
    prior = Group(SSGL(1e-6, 1.0, 0.25).expand([2, 4]))
    value = prior.sample((20_000,))
    assert value.shape == (20_000, 2, 4)
    included = (value.abs() > 1e-3).double().mean(-1)
    share = 2 * 1e-3 / math.sqrt(2 * math.pi)  # of the slab below 1e-3
    assert ((included == 0) | (included >= 0.5)).double().mean() > 1 - 6 * share**2 - 1e-3
    each = (included > 0).double()
    assert (each.mean(0) - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 20_000)
    together = (each[:, 0] * each[:, 1]).mean()  # independent from group to group
    assert abs(together - 0.25**2) < 5 * 0.25 / math.sqrt(20_000)
    assert prior.mean.shape == prior.variance.shape == (2, 4)


def test_expansion_plates_and_pickling():
    prior = Group(SSGL(0.1, 10.0, 0.3).expand([3, 2]), dims=2)
    assert (prior.batch_shape, prior.event_shape) == ((), (3, 2))
    big = prior.expand((5, 4))
    assert (big.batch_shape, big.event_shape) == ((5, 4), (3, 2))
    assert big.delta.shape == (5, 4) and big.sample((7,)).shape == (7, 5, 4, 3, 2)
    value = torch.randn(5, 4, 3, 2)
    torch.testing.assert_close(big.log_prob(value), prior.log_prob(value))
    assert torch.equal(pickle.loads(pickle.dumps(big)).log_prob(value), big.log_prob(value))

    def model():
        with pyro.plate("filters", 5):
            return pyro.sample("w", Group(SSGL(0.1, 10.0, 0.3).expand([3, 2]), dims=2))

    site = poutine.trace(model).get_trace().nodes["w"]
    assert site["value"].shape == (5, 3, 2)
    assert group_size(site["fn"]) == 6 and isinstance(unwrap(site["fn"]), SSGL)
    assert group_size(prior.expand((5,)).to_event(1)) == 6
    assert group_size(SSGL(0.1, 10.0, 0.3).expand([3, 2]).to_event(2)) == 1


@pytest.mark.parametrize("dims", [0, 3])
def test_bad_dims(dims):
    with pytest.raises(ValueError, match=f"dims from 1 to the 2 dimensions of SSGL.* found {dims}"):
        Group(SSGL(0.1, 10.0, 0.3).expand([3, 2]), dims)


def test_a_delta_that_differs_within_a_group():
    with pytest.raises(ValueError, match=r"one delta a group, but found delta of shape \(3, 2\)"):
        Group(SSGL(0.1, 10.0, torch.rand(3, 2)))
    assert Group(SSGL(0.1, 10.0, torch.rand(3, 1)).expand([3, 2])).batch_shape == (3,)


def test_another_distribution():
    with pytest.raises(TypeError, match=r"such as SSGL, without to_event, but found Independent"):
        Group(SSGL(0.1, 10.0, 0.3).expand([3, 2]).to_event(1))


def model():
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    prior = SSGL(0.1, 10.0, delta, sigma2.sqrt())
    pyro.sample("filters", Group(prior.expand([6, 2, 3, 3]), dims=3).to_event(1))
    pyro.sample("last", prior.expand([6]).to_event(1))


def test_what_the_kernel_finds():
    structure = inspect_model(model, (), {}, adapt=True)
    assert [(b.name, b.group, b.size) for b in structure.sparse] == [
        ("filters", 18, 108),
        ("last", 1, 6),
    ]
    assert structure.latent_sites == ("sigma2", "delta")


LEARNED = Delta("delta", a=2.0, b=3.0)


def make_rule(groups, delta=LEARNED):
    """Sites of 12 weights each, in groups of some sizes, under one delta."""
    sparse = tuple(
        SparseBlock(f"b{n}", torch.Size([12]), group=group) for n, group in enumerate(groups)
    )
    structure = Structure(
        sparse=sparse,
        normal=(),
        general=(),
        sigmas=(Sigma("sigma2", nu=3.0, nu_lambda=2.0),),
        deltas=(delta,),
        observed=(),
        plates={},
        dims={},
        observations={},
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    return SpikeAndSlabRule(structure)


FIRST = {"sigma2": torch.tensor(1.0), "delta": torch.tensor(0.3)}


def test_groups_beside_single_weights_and_groups_of_other_sizes():
    sizes, beta = (3, 1, 4, 4), torch.randn(48).double()
    own = make_rule(sizes)
    after = own.update(own.init(FIRST, StochasticApproximation(1.0)), beta, {}, 1.0)
    prior = SSGL(0.1, 10.0, torch.tensor(0.3).double(), 1.0)
    gammas = []
    for part, rho, size in zip(beta.split(12), after.rho.split(12), sizes, strict=True):
        groups = Group(prior.expand([12 // size, size]))
        expected = groups.inclusion(part.reshape(-1, size))
        torch.testing.assert_close(rho, expected.repeat_interleave(size))
        gammas.append(expected)
    total = torch.cat(gammas)
    assert len(total) == 4 + 12 + 3 + 3
    torch.testing.assert_close(after.delta[0], (total.sum() + 1.0) / (5.0 + 22 - 2))


def test_collapse_is_counted_in_groups():
    # Under 1/1000 of a group expected: of two groups, where delta < 1/2000.
    for delta, collapsed in ((1e-3, []), (1e-4, ["delta"])):
        own = make_rule((12, 12), delta=Delta("delta", a=1.0, b=1.0))
        latents = own.init({**FIRST, "delta": torch.tensor(delta)}, StochasticApproximation(1.0))
        assert own.collapsed(latents) == collapsed
    # 24 weights on their own would have 24 / 10,000 expected.
    own = make_rule((1, 1), delta=Delta("delta", a=1.0, b=1.0))
    assert own.collapsed(latents) == []


def test_a_prior_without_a_mode_for_so_few_groups_is_refused():
    flat = Delta("delta", a=0.5, b=0.5)
    with pytest.raises(ModelError, match="with 1 weights or groups has no mode"):
        make_rule((12,), delta=flat)
    make_rule((6,), delta=flat)


def test_links_are_found_through_groups_in_a_plate():
    def plated():
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        with pyro.plate("filters", 6):
            pyro.sample("w", Group(SSGL(0.1, 10.0, delta, sigma2.sqrt()).expand([4])))

    structure = inspect_model(plated, (), {}, adapt=True)
    assert structure.latent_sites == ("sigma2", "delta")
    assert [(block.shape, block.group) for block in structure.sparse] == [((6, 4), 4)]
    assert structure.dims["w"] == ("filters", None)

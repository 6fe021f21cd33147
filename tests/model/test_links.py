# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latent site of an SSGL parameter: found through all of Pyro's ways to write a model, or given by
hand where the link is lost.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from link_models import N, X, Y, inspect, observe, refusal_message, sample_latents, ssgl_prior
from models import P, SparseNetwork, sparse_layers, sparse_regression
from pyro import poutine

from pyro_aeb import SSGL, ModelError

# Models here lose links on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

# Found


def in_a_plate():
    sigma2, delta = sample_latents()
    with pyro.plate("features", P):
        return pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()))


def expanded():
    sigma2, delta = sample_latents()
    return pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))


def of_the_shape_of_a_tensor():
    sigma2, delta = sample_latents()
    v0 = torch.full([P], 0.1)
    return pyro.sample("beta", SSGL(v0, 10.0, delta, sigma2**0.5).to_event(1))


def plate_and_event():
    sigma2, delta = sample_latents()
    with pyro.plate("layers", 2), pyro.plate("features", P, dim=-2):
        weights = pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([4]).to_event(1))
    return weights.sum((-1, -2))


def nested_plates():
    sigma2, delta = sample_latents()
    with pyro.plate("features", P), pyro.plate("layers", 2):
        return pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt())).sum(0)


def by_functions_of_torch():
    sigma2, delta = sample_latents()
    sigma = torch.exp(0.5 * torch.log(sigma2))
    with pyro.plate("features", P):
        return pyro.sample("beta", ssgl_prior(1.0 - (1.0 - delta), sigma))


def through_a_deterministic_site():
    sigma2, delta = sample_latents()
    sigma = pyro.deterministic("sigma", sigma2.sqrt())
    with pyro.plate("features", P):
        return pyro.sample("beta", ssgl_prior(delta, sigma))


def in_a_scope():
    """Sample sites in a plate of length 1, and remove its axis."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0).expand([1]).to_event(1)).squeeze(0)
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0).expand([1]).to_event(1))[0]
    with pyro.plate("features", P):
        return pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()))


WAYS = [
    in_a_plate,
    expanded,
    of_the_shape_of_a_tensor,
    plate_and_event,
    nested_plates,
    by_functions_of_torch,
    through_a_deterministic_site,
    in_a_scope,
]


@pytest.mark.parametrize("weights", WAYS, ids=lambda way: way.__name__)
def test_links_are_found(weights):
    def model():
        observe(X @ weights(), 1.0)

    found = inspect(model)
    (sigma,), (delta,) = found.sigmas, found.deltas
    assert (sigma.site, delta.site) == ("sigma2", "delta")
    # sigma2 ~ InverseGamma(nu / 2, nu lambda / 2) = InverseGamma(1.5, 2); delta ~ Beta(a, b)
    assert (sigma.nu, sigma.nu_lambda, delta.a, delta.b) == (3.0, 4.0, 2.0, 3.0)
    assert found.latent_sites == ("sigma2", "delta")
    assert [block.name for block in found.blocks] == ["beta"]


def test_links_are_found_in_a_module():
    found = inspect(SparseNetwork(), X, Y)
    assert found.latent_sites == ("sigma2", "delta")
    assert [block.name for block in found.sparse] == ["beta"]
    assert found.sigmas[0].likelihoods == {"y"}


def test_every_layer_has_its_own_delta_and_all_share_one_sigma():
    found = inspect(sparse_layers, X, Y)
    assert [block.name for block in found.sparse] == ["w0", "w1"]
    assert [found.sigmas[block.sigma].site for block in found.sparse] == ["sigma2", "sigma2"]
    assert [found.deltas[block.delta].site for block in found.sparse] == ["delta0", "delta1"]
    assert [(delta.a, delta.b) for delta in found.deltas] == [(2.0, 3.0), (3.0, 3.0)]


def test_layers_may_share_delta_and_have_their_own_sigma():
    def model():
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        for layer in range(2):
            sigma2 = pyro.sample(f"sigma2_{layer}", dist.InverseGamma(1.0 + layer, 1.0))
            pyro.sample(f"w{layer}", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))

    found = inspect(model)
    assert len(found.deltas) == 1
    sites = [found.sigmas[block.sigma] for block in found.sparse]
    assert [(sigma.site, sigma.nu) for sigma in sites] == [("sigma2_0", 2.0), ("sigma2_1", 4.0)]


@pytest.mark.parametrize("delta", [0.25, torch.tensor(0.25), torch.full([P], 0.25)], ids=str)
@pytest.mark.parametrize("sigma", [2.0, 2, torch.tensor(2.0)], ids=str)
def test_numbers_fix_latents(delta, sigma):
    def model():
        beta = pyro.sample("beta", ssgl_prior(delta, sigma).expand([P]).to_event(1))
        observe(X @ beta, 1.0)

    found = inspect(model)
    assert found.latent_sites == ()
    (fixed_sigma,), (fixed_delta,) = found.sigmas, found.deltas
    assert (fixed_sigma.site, fixed_sigma.fixed) == (None, 2.0)
    assert (fixed_delta.site, fixed_delta.fixed) == (None, 0.25)


def test_one_latent_may_be_fixed_and_the_other_learned():
    def model():
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        pyro.sample("beta", ssgl_prior(delta, 0.5).expand([P]).to_event(1))

    found = inspect(model)
    assert found.latent_sites == ("delta",)
    assert found.sigmas[0].fixed == 0.5


def test_an_observed_latent_is_a_number():
    data = {"sigma2": torch.tensor(4.0), "delta": torch.tensor(0.25)}
    found = inspect(poutine.condition(sparse_regression, data=data), X, Y)
    assert found.latent_sites == ()
    assert (found.sigmas[0].fixed, found.deltas[0].fixed) == (2.0, 0.25)


def test_sites_that_feed_no_ssgl_are_sampled():
    def model():
        _, delta = sample_latents()
        pyro.sample("rate", dist.Beta(2.0, 2.0))
        observe(X @ pyro.sample("beta", ssgl_prior(delta, 1.0).expand([P]).to_event(1)), 1.0)

    found = inspect(model)
    assert found.latent_sites == ("delta",)
    assert [block.name for block in found.general] == ["sigma2", "rate"]


def test_without_adaptation_all_sites_are_sampled():
    found = inspect(sparse_regression, X, Y, adapt=False)
    assert found.latent_sites == () and not found.sparse
    assert {block.name for block in found.general} == {"sigma2", "delta", "beta"}


def test_every_weight_may_have_a_number_of_its_own():
    def model():
        with pyro.plate("features", P):
            delta = pyro.sample("delta", dist.Beta(2.0, torch.tensor([3.0, 4.0, 5.0])))
            sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor([1.0, 2.0, 0.5])))
        pyro.sample("beta", ssgl_prior(delta, sigma).to_event(1))

    found = inspect(model)
    assert found.latent_sites == ("sigma", "delta")
    assert [(d.site, d.a, d.b, d.index) for d in found.deltas] == [
        ("delta", 2.0, 3.0, 0),
        ("delta", 2.0, 4.0, 1),
        ("delta", 2.0, 5.0, 2),
    ]
    assert [sigma.terms.quadratic for sigma in found.sigmas] == [1.0, 0.25, 4.0]
    (block,) = found.sparse
    assert block.sigma.tolist() == block.delta.tolist() == [0, 1, 2]


def test_a_number_of_a_vector_is_one_for_all_weights():
    def model():
        with pyro.plate("layers", 2):
            sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        for layer in range(2):
            prior = ssgl_prior(0.5, sigma2.sqrt()[1 - layer]).expand([P]).to_event(1)
            beta = pyro.sample(f"w{layer}", prior)
            observe(X @ beta, sigma2.sqrt()[1 - layer], name=f"y{layer}")

    found = inspect(model)
    assert [block.sigma for block in found.sparse] == [1, 0]
    assert [sigma.likelihoods for sigma in found.sigmas] == [{"y1"}, {"y0"}]
    assert not found.sigmas_of_data


@pytest.mark.parametrize("lose", [lambda x: x, lambda x: torch.tensor(x.tolist())])
def test_a_vector_whose_link_is_lost_is_linked_by_hand(lose):
    def model():
        with pyro.plate("features", P):
            delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        pyro.sample("beta", ssgl_prior(lose(delta), 1.0).to_event(1))

    found = inspect(model, links={"beta": {"delta": "delta"}})
    assert found.sparse[0].delta.tolist() == [0, 1, 2]


# Likelihoods whose scale is a multiple of sigma


@pytest.mark.parametrize(
    "scale",
    [
        lambda sigma2: sigma2.sqrt(),
        lambda sigma2: 2.0 * sigma2.sqrt(),
        lambda sigma2: (sigma2 / 9.0) ** 0.5,
        lambda sigma2: sigma2.sqrt() * (1.0 + X[:, 0].abs()),
        lambda sigma2: torch.sqrt(sigma2 * torch.linspace(1.0, 2.0, N)),
    ],
    ids=["sigma", "2 sigma", "sigma / 3", "sigma c(x)", "sqrt(sigma2 c)"],
)
def test_a_likelihood_may_have_a_multiple_of_sigma_as_its_scale(scale):
    def model():
        sigma2, delta = sample_latents()
        beta = pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))
        observe(X @ beta, scale(sigma2))

    assert inspect(model).sigmas[0].likelihoods == {"y"}


def test_the_multiple_may_depend_on_weights():
    def model():
        sigma2, delta = sample_latents()
        beta = pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        observe(X @ beta, sigma2.sqrt() * torch.exp(X @ w))

    assert inspect(model).sigmas[0].likelihoods == {"y"}


def test_a_likelihood_with_another_scale_has_nothing_to_do_with_sigma():
    def model():
        sigma2, delta = sample_latents()
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        beta = pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))
        observe(X @ beta, noise)
        observe(X @ beta, 0.3, name="z")

    assert inspect(model).sigmas[0].likelihoods == frozenset()


def test_several_likelihoods_and_several_sigmas():
    def model():
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        for name in "ab":
            sigma2 = pyro.sample(f"sigma2_{name}", dist.InverseGamma(1.0, 1.0))
            beta = pyro.sample(name, ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))
            observe(X @ beta, sigma2.sqrt(), name=f"y_{name}")
            observe(X @ beta, 3.0 * sigma2.sqrt(), name=f"z_{name}")

    found = {sigma.site: sigma.likelihoods for sigma in inspect(model).sigmas}
    assert found == {"sigma2_a": {"y_a", "z_a"}, "sigma2_b": {"y_b", "z_b"}}


@pytest.mark.parametrize("priors", ["InverseGamma", "HalfCauchy", "both"])
def test_many_sigmas_are_told_apart(priors):
    """Some of them change by nearly the same when they are perturbed at random."""

    def model():
        for i in range(120):
            if priors == "HalfCauchy" or (priors == "both" and i % 2):
                sigma = pyro.sample(f"s{i}", dist.HalfCauchy(1.0))
            else:
                sigma = pyro.sample(f"s{i}", dist.InverseGamma(1.0, 1.0)).sqrt()
            beta = pyro.sample(f"b{i}", SSGL(0.1, 10.0, 0.5, sigma).expand([1]).to_event(1))
            pyro.sample(f"y{i}", dist.Normal(beta.sum(), 2.0 * sigma), obs=torch.tensor(1.0))

    found = {sigma.site: sigma.likelihoods for sigma in inspect(model).sigmas}
    assert found == {f"s{i}": {f"y{i}"} for i in range(120)}


def test_data_of_one_site_with_the_sigmas_of_two_are_refused():
    def model():
        sigmas = [pyro.sample(f"s{i}", dist.HalfCauchy(1.0)) for i in range(2)]
        for i in range(2):
            pyro.sample(f"b{i}", SSGL(0.1, 10.0, 0.5, sigmas[i]).expand([P]).to_event(1))
        scale = torch.stack(sigmas)
        pyro.sample("y", dist.Normal(torch.zeros(2), scale).to_event(1), obs=torch.ones(2))

    assert "depends on one of ['s0', 's1']" in refusal_message(model)


def test_a_likelihood_of_vectors():
    def model():
        sigma2, delta = sample_latents()
        W = pyro.sample("W", ssgl_prior(delta, sigma2.sqrt()).expand([P, 2]).to_event(2))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ W, sigma2.sqrt()).to_event(1), obs=torch.ones(N, 2))

    assert inspect(model).sigmas[0].likelihoods == {"y"}


# Lost links, and links by hand


def losing_model(lose):
    def model():
        sigma2, delta = sample_latents()
        delta, sigma = lose(sigma2, delta)
        with pyro.plate("features", P):
            beta = pyro.sample("beta", ssgl_prior(delta, sigma))
        observe(X @ beta, sigma2.sqrt())

    return model


LOST = {
    "float": ("delta", lambda sigma2, delta: (float(delta), sigma2.sqrt())),
    "item": ("delta", lambda sigma2, delta: (delta.item(), sigma2.sqrt())),
    "new tensor": ("delta", lambda sigma2, delta: (torch.tensor(float(delta)), sigma2.sqrt())),
    "sigma": ("sigma", lambda sigma2, delta: (delta, float(sigma2) ** 0.5)),
}


@pytest.mark.parametrize("parameter, lose", LOST.values(), ids=LOST)
def test_a_lost_link_is_an_error_that_names_links(parameter, lose):
    site = {"delta": "delta", "sigma": "sigma2"}[parameter]
    message = refusal_message(losing_model(lose))
    assert f"SSGL site 'beta': {parameter}" in message
    assert "float(x)" in message and ".item()" in message
    assert f"links={{'beta': {{'{parameter}': '{site}'}}}}" in message


@pytest.mark.parametrize("parameter, lose", LOST.values(), ids=LOST)
def test_links_by_hand_stand_in_for_a_lost_link(parameter, lose):
    site = {"delta": "delta", "sigma": "sigma2"}[parameter]
    found = inspect(losing_model(lose), links={"beta": {parameter: site}})
    assert set(found.latent_sites) == {"sigma2", "delta"}
    assert (found.sigmas[0].site, found.deltas[0].site) == ("sigma2", "delta")


def broadcast_together():
    sigma2, delta = sample_latents()
    delta, sigma = torch.broadcast_tensors(delta, sigma2.sqrt().expand(P))
    beta = pyro.sample("beta", ssgl_prior(delta, sigma).to_event(1))
    observe(X @ beta, sigma2.sqrt())


def test_an_ambiguous_link_is_an_error_that_names_links():
    message = refusal_message(broadcast_together)
    assert "depends on the latent sites ['delta', 'sigma2'], expected one" in message
    assert "links={'beta': {'delta': ...}}" in message


def test_links_by_hand_settle_an_ambiguous_link():
    by_hand = {"beta": {"delta": "delta", "sigma": "sigma2"}}
    assert inspect(broadcast_together, links=by_hand).latent_sites == ("sigma2", "delta")


@pytest.mark.parametrize(
    "links, message",
    [
        (
            {"gamma": {"delta": "delta"}},
            r"'gamma' is not a sparse site; sparse sites are \['beta'\]",
        ),
        ({"beta": {"rho": "delta"}}, "'rho' of site 'beta' is not 'delta', 'sigma' or 'v0'"),
        ({"beta": {"delta": "d"}}, r"names 'd', .* latent sites are \['beta', 'delta', 'sigma2'\]"),
        ({"beta": {"delta": "sigma2"}}, "comes from site 'sigma2' ~ InverseGamma, which has no"),
        ({"beta": {"sigma": "delta"}}, "comes from site 'delta' ~ Beta, which has no"),
    ],
    ids=["no SSGL site", "no parameter", "no latent site", "delta", "sigma"],
)
def test_wrong_links_by_hand_are_errors(links, message):
    with pytest.raises(ModelError, match=message):
        inspect(sparse_regression, X, Y, links=links)


def test_links_by_hand_to_a_site_that_the_parameter_does_not_follow():
    def model():
        sigma2, delta = sample_latents()
        pyro.sample("other", dist.Beta(1.0, 1.0))
        observe(X @ pyro.sample("beta", ssgl_prior(delta, 1.0).expand([P]).to_event(1)), 1.0)

    message = refusal_message(model, links={"beta": {"delta": "other"}})
    assert "SSGL site 'beta'" in message and "'other'" in message


@pytest.mark.parametrize("links", [["beta"], {"beta": ["delta"]}, {"beta": "delta"}], ids=str)
def test_links_of_another_form_are_errors_that_show_the_form(links):
    with pytest.raises((ModelError, TypeError), match=r"links.*'beta'.*expected"):
        inspect(sparse_regression, X, Y, links=links)

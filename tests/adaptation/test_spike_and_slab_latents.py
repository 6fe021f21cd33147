# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents' state and one sweep of equations (4)-(8) over it. That a sweep with weight 1 maximises
Q is in ``proofs/test_m_steps.py``, that many are Algorithm 1 in ``proofs/test_special_cases.py``.
"""

import math
import pickle
from functools import partial

import pytest
import torch
from ssgl_references import prior_gradient

from pyro_aeb.adaptation.latent_values import SpikeAndSlabLatents
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.segments import Segments
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import Delta, Residuals, Sigma, SparseBlock, Structure
from pyro_aeb.priors import SSGL

LEARNED_SIGMA = Sigma("sigma2", nu=3.0, nu_lambda=2.0)
NOISE_SIGMA = Sigma("sigma2", nu=3.0, nu_lambda=2.0, likelihoods=frozenset({"y"}))
LEARNED_DELTA = Delta("delta", a=2.0, b=3.0)
FIRST = {"sigma2": torch.tensor(4.0), "delta": torch.tensor(0.3)}


def make_structure(*blocks, sigmas, deltas, dtype=torch.float64):
    """A model of SSGL sites alone, each given by its size or as a ``SparseBlock``."""
    sparse = tuple(
        block if isinstance(block, SparseBlock) else SparseBlock(f"b{n}", torch.Size([block]))
        for n, block in enumerate(blocks)
    )
    return Structure(
        sparse=sparse,
        normal=(),
        general=(),
        sigmas=tuple(sigmas),
        deltas=tuple(deltas),
        observed=("y",),
        plates={},
        dims={},
        observations={},
        dtype=dtype,
        device=torch.device("cpu"),
    )


def make_block(name, size, v0=0.1, v1=10.0, sigma=0, delta=0, **options):
    parameters = {"v0": v0, "v1": v1}
    return SparseBlock(
        name, torch.Size([size]), parameters=parameters, sigma=sigma, delta=delta, **options
    )


def one_layer(size=4, sigma=LEARNED_SIGMA, delta=LEARNED_DELTA, **options):
    return SpikeAndSlabRule(
        make_structure(make_block("b", size), sigmas=[sigma], deltas=[delta], **options)
    )


def three_layers():
    """Layers of 2, 3 and 1 weights: two sigmas, the first for two layers, and two deltas."""
    return SpikeAndSlabRule(
        make_structure(
            make_block("first", 2, 0.1, 10.0, sigma=0, delta=0),
            make_block("second", 3, 0.2, 5.0, sigma=1, delta=1),
            make_block("third", 1, 0.3, 1.0, sigma=0, delta=1),
            sigmas=[NOISE_SIGMA, Sigma("tau2", nu=1.0, nu_lambda=0.5)],
            deltas=[LEARNED_DELTA, Delta("epsilon", a=1.0, b=4.0)],
        )
    )


THREE_FIRST = {**FIRST, "tau2": torch.tensor(0.25), "epsilon": torch.tensor(0.6)}
RESIDUALS = {"y": Residuals(torch.tensor(5.0, dtype=torch.float64), 12.0)}


class TestGroups:
    groups = Segments(sizes=(2, 3, 1, 2), index=(0, 1, 0, 2), count=3)
    members = [0, 0, 1, 1, 1, 0, 2, 2]

    @pytest.mark.parametrize("chains", [(), (5,), (2, 3)])
    def test_sums_and_spreads_by_group(self, chains):
        values = torch.randn(*chains, 8)
        index = torch.tensor(self.members)
        expected = torch.zeros(*chains, 3).index_add(-1, index, values)
        torch.testing.assert_close(self.groups.sum(values), expected)
        by_group = torch.randn(*chains, 3)
        assert torch.equal(self.groups.spread(by_group), by_group[..., index])

    @pytest.mark.parametrize("chains", [(), (5,)])
    def test_one_group_is_everything(self, chains):
        groups = Segments(sizes=(2, 3), index=(0, 0), count=1)
        values = torch.randn(*chains, 5)
        torch.testing.assert_close(groups.sum(values), values.sum(-1, keepdim=True))
        one = torch.randn(*chains, 1)
        assert torch.equal(groups.spread(one).expand(*chains, 5), one.expand(*chains, 5))

    def test_lengths(self):
        assert self.groups.lengths() == [3, 3, 2]


class TestFirstLatents:
    def test_learned_sites_start_at_their_values(self):
        latents = one_layer().init(FIRST, StochasticApproximation(0.5))
        assert latents.sigma.tolist() == [2.0]  # the site is sigma squared
        assert latents.delta.tolist() == pytest.approx([0.3])

    def test_fixed_numbers_are_taken_as_they_are(self):
        rule = one_layer(sigma=Sigma(None, fixed=0.7), delta=Delta(None, fixed=0.2))
        latents = rule.init({}, StochasticApproximation(0.5))
        assert latents.sigma.tolist() == [0.7] and latents.delta.tolist() == [0.2]

    @pytest.mark.parametrize("inclusion", [0.0, 0.3, 1.0])
    def test_penalties_start_from_equation_5(self, inclusion):
        rule = one_layer()
        latents = rule.init(FIRST, StochasticApproximation(0.5, initial_inclusion=inclusion))
        assert latents.rho.tolist() == [inclusion] * 4
        # At beta = 1 the prior's gradient is -kappa0 / sigma - kappa1 / sigma^2 with sigma = 2,
        # kappa0 = (1 - rho) / v0 and kappa1 = rho / v1.
        gradient = prior_gradient(rule, latents, torch.ones(4, dtype=torch.float64))
        expected = -(1 - inclusion) / 0.1 / 2.0 - inclusion / 10.0 / 4.0
        assert gradient.tolist() == pytest.approx([expected] * 4)

    def test_every_site_may_have_its_own_inclusions(self):
        given = {"third": torch.tensor([1.0]), "second": torch.tensor([0.25, 0.5, 0.75])}
        given["first"] = torch.tensor([0.0, 0.125])
        latents = three_layers().init(THREE_FIRST, StochasticApproximation(0.5, given))
        expected = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]  # in the order of the slab
        assert latents.rho.tolist() == latents.slab.tolist() == expected

    @pytest.mark.parametrize(
        "given",
        [
            {"first": torch.ones(2), "second": torch.ones(3)},
            {"first": torch.ones(2), "second": torch.ones(3), "third": torch.ones(2)},
            {"first": torch.ones(2), "second": torch.ones(3), "thrid": torch.ones(1)},
        ],
        ids=["one missing", "another shape", "no such site"],
    )
    def test_inclusions_that_do_not_fit_the_sites_are_refused(self, given):
        with pytest.raises(ModelError, match=r"initial_inclusion .* expected one for every sparse"):
            three_layers().init(THREE_FIRST, StochasticApproximation(0.5, given))

    @pytest.mark.parametrize("v0", [0.1, torch.tensor([0.1, 0.2, 0.3, 0.4])], ids=["one", "each"])
    def test_or_from_a_given_penalty(self, v0):
        rule = SpikeAndSlabRule(
            make_structure(
                make_block("b", 4, v0=v0), sigmas=[LEARNED_SIGMA], deltas=[LEARNED_DELTA]
            )
        )
        latents = rule.init(FIRST, StochasticApproximation(0.5, initial_penalty=3.0))
        beta = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
        expected = -3.0 * beta.sign() / 2.0 - 3.0 * beta / 4.0
        torch.testing.assert_close(prior_gradient(rule, latents, beta), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_they_have_the_models_type(self, dtype):
        rule = one_layer(dtype=dtype)
        latents = rule.init(FIRST, StochasticApproximation(0.5))
        beta = torch.randn(4, dtype=dtype)
        for here in (latents, rule.update(latents, beta, {}, 0.5)):
            for tensor in (here.rho, here.slab, here.sigma, here.delta):
                assert tensor.dtype == dtype
        assert prior_gradient(rule, latents, beta).dtype == dtype

    def test_a_prior_without_a_mode_is_refused(self):
        with pytest.raises(ModelError, match=r"'delta' ~ Beta\(0\.5, 0\.5\) with 1 weights has no"):
            one_layer(1, delta=Delta("delta", a=0.5, b=0.5))
        one_layer(2, delta=Delta("delta", a=0.5, b=0.5))


class TestOrder:
    """Algorithm 1 goes from rho to kappa, sigma and delta; each sees those before it averaged."""

    omega = 0.25
    beta = torch.tensor([0.3, -2.0, 0.0, 0.7], dtype=torch.float64)

    def sweep(self):
        rule = one_layer(sigma=NOISE_SIGMA)
        before = rule.init(FIRST, StochasticApproximation(0.5, initial_inclusion=0.4))
        return rule, before, rule.update(before, self.beta, RESIDUALS, self.omega)

    def test_rho_sees_the_old_sigma_and_delta(self):
        _, before, after = self.sweep()
        density = SSGL(0.1, 10.0, before.delta, before.sigma)
        expected = 0.75 * before.rho + 0.25 * density.inclusion(self.beta)
        torch.testing.assert_close(after.rho, expected)

    def test_the_penalties_see_the_new_rho(self):
        _, before, after = self.sweep()
        # kappa1 = slab / v1 and kappa0 = (1 - slab) / v0 are averages of (5) at the averaged rho.
        torch.testing.assert_close(after.slab, 0.75 * before.slab + 0.25 * after.rho)

    def test_sigma_sees_the_new_penalties(self):
        _, before, after = self.sweep()
        kappa0, kappa1 = (1 - after.slab) / 0.1, after.slab / 10.0
        absolute = (kappa0 * self.beta.abs()).sum()
        c = 5.0 + (kappa1 * self.beta.square()).sum() + 2.0
        a = 12 + 4 + 3.0 + 2
        new = (absolute + (absolute**2 + 4 * a * c).sqrt()) / (2 * a)
        torch.testing.assert_close(after.sigma, 0.75 * before.sigma + 0.25 * new)

    def test_delta_sees_the_new_rho(self):
        _, before, after = self.sweep()
        new = (after.rho.sum() + 2.0 - 1) / (2.0 + 3.0 + 4 - 2)
        torch.testing.assert_close(after.delta, 0.75 * before.delta + 0.25 * new)


def test_one_array_in_disguise_is_two_recursions_for_kappa():
    # kappa <- (1 - omega) kappa + omega kappa~, for kappa0 and kappa1 each on its own, from first
    # values that equation (5) does not link. The gradient at beta = 1 and -1 tells both.
    second_v0 = torch.tensor([0.5, 0.6], dtype=torch.float64)
    rule = SpikeAndSlabRule(
        make_structure(
            make_block("first", 3, 0.1, 10.0),
            make_block("second", 2, second_v0, 0.2),
            sigmas=[LEARNED_SIGMA],
            deltas=[LEARNED_DELTA],
        )
    )
    v0 = torch.cat([torch.full((3,), 0.1, dtype=torch.float64), second_v0])
    v1 = torch.tensor([10.0, 10.0, 10.0, 0.2, 0.2], dtype=torch.float64)
    latents = rule.init(FIRST, StochasticApproximation(0.5, initial_penalty=7.0))
    kappa0 = kappa1 = torch.full((5,), 7.0).double()
    for omega in (0.9, 0.0, 0.5, 0.01, 1.0, 0.3):
        latents = rule.update(latents, torch.randn(5).double(), {}, omega)
        kappa0 = (1 - omega) * kappa0 + omega * (1 - latents.rho) / v0
        kappa1 = (1 - omega) * kappa1 + omega * latents.rho / v1
        for beta in (1.0, -1.0, 0.1):
            found = prior_gradient(rule, latents, torch.full((5,), beta, dtype=torch.float64))
            expected = -kappa0 * math.copysign(1.0, beta) / latents.sigma
            expected = expected - kappa1 * beta / latents.sigma**2
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


class TestUpdate:
    def start(self, penalty=0.7):
        rule = three_layers()
        return rule, rule.init(THREE_FIRST, StochasticApproximation(0.5, initial_penalty=penalty))

    def test_weight_0_changes_nothing(self):
        rule, before = self.start()
        after = rule.update(before, torch.randn(6).double(), RESIDUALS, 0.0)
        for a, b in zip(after, before, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))

    def test_it_leaves_its_inputs_as_they_were(self):
        rule, before = self.start()
        before = rule.update(before, torch.randn(6).double(), RESIDUALS, 0.3)
        beta = torch.randn(6).double()
        inputs = [*map(torch.as_tensor, before), beta]
        copies = [value.clone() for value in inputs]
        first = rule.update(before, beta, RESIDUALS, 0.3)
        prior_gradient(rule, first, beta), rule.potential(first, beta), rule.site_values(first)
        assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
        again = rule.update(before, beta, RESIDUALS, 0.3)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))

    def test_a_leading_axis_of_chains_equals_separate_chains(self):
        rule, start = self.start()
        chains, steps = 3, 4
        betas = torch.randn(steps, chains, 6).double()
        squares = 5.0 * torch.rand(steps, chains).double()
        rho, slab, excess, sigma, delta = start
        tiled = (v.expand(chains, -1) for v in (rho, slab, sigma, delta))
        rho, slab, sigma, delta = tiled
        together = SpikeAndSlabLatents(rho, slab, excess, sigma, delta)
        for beta, square in zip(betas, squares, strict=True):
            together = rule.update(together, beta, {"y": Residuals(square, 12.0)}, 0.3)
        for c in range(chains):
            alone = start
            for beta, square in zip(betas[:, c], squares[:, c], strict=True):
                alone = rule.update(alone, beta, {"y": Residuals(square, 12.0)}, 0.3)
            for name in ("rho", "slab", "sigma", "delta"):
                torch.testing.assert_close(
                    getattr(together, name)[c], getattr(alone, name), rtol=1e-13, atol=0.0
                )
            for function in (partial(prior_gradient, rule), rule.potential):
                torch.testing.assert_close(
                    function(together, betas[-1])[c],
                    function(alone, betas[-1, c]),
                    rtol=1e-13,
                    atol=1e-13,
                )

    def test_groups_do_not_mix(self):
        # tau2 and epsilon belong to the second layer; epsilon to the third too.
        rule, before = self.start()
        beta = torch.randn(6).double()
        moved = beta.clone()
        moved[2:5] += 1.0
        a, b = (rule.update(before, x, RESIDUALS, 0.5) for x in (beta, moved))
        assert torch.equal(a.rho[[0, 1, 5]], b.rho[[0, 1, 5]]) and (a.rho != b.rho)[2:5].any()
        assert a.sigma[0] == b.sigma[0] and a.sigma[1] != b.sigma[1]
        assert a.delta[0] == b.delta[0] and a.delta[1] != b.delta[1]

    def test_residuals_reach_their_own_sigma_alone(self):
        rule, before = self.start()
        beta = torch.randn(6).double()
        larger = {"y": Residuals(torch.tensor(50.0).double(), 12.0)}
        a, b = (rule.update(before, beta, residuals, 0.5) for residuals in (RESIDUALS, larger))
        assert a.sigma[0] < b.sigma[0] and a.sigma[1] == b.sigma[1]

    @pytest.mark.parametrize("chains", [(), (3,)])
    @pytest.mark.parametrize("each", ["number", "tensor", "some of both"])
    @pytest.mark.parametrize("count", [3, 7])
    def test_many_sigmas_with_likelihoods_are_as_each_alone(self, count, each, chains):
        """One sigma has two likelihoods, one has none."""
        sites = [{f"y{i}"} for i in range(count - 2)] + [set(), {"u", "v"}]
        sigmas = [
            Sigma(f"s{i}", nu=3.0, nu_lambda=2.0, likelihoods=frozenset(own))
            for i, own in enumerate(sites)
        ]
        first = {f"s{i}": torch.tensor(1.0 + i) for i in range(count)} | FIRST
        deltas, options = [LEARNED_DELTA], StochasticApproximation(0.5)
        blocks = [make_block(f"b{i}", 2, sigma=i) for i in range(count)]
        together = SpikeAndSlabRule(make_structure(*blocks, sigmas=sigmas, deltas=deltas))

        def data(name):
            number = 10.0 + len(name) + ord(name[-1])
            is_number = each == "number" or (each == "some of both" and name == "y0")
            return number if is_number else torch.full(chains, number).double()

        residuals = {
            name: Residuals(1.0 + torch.rand(chains).double(), data(name))
            for name in set.union(*sites)
        }
        beta = torch.randn(*chains, 2 * count).double()
        start = together.init(first, options)
        start = start._replace(
            **{n: getattr(start, n).expand(*chains, -1) for n in ("rho", "slab", "sigma", "delta")}
        )
        found = together.update(start, beta, residuals, 0.5).sigma
        for i, sigma in enumerate(sigmas):
            alone = SpikeAndSlabRule(make_structure(2, sigmas=[sigma], deltas=deltas))
            part = slice(2 * i, 2 * i + 2)
            own = start._replace(
                rho=start.rho[..., part],
                slab=start.slab[..., part],
                sigma=start.sigma[..., i : i + 1],
            )
            expected = alone.update(own, beta[..., part], residuals, 0.5).sigma
            torch.testing.assert_close(found[..., i : i + 1], expected, rtol=1e-13, atol=0.0)

    @pytest.mark.parametrize("sigma", [LEARNED_SIGMA, Sigma(None, fixed=0.7)])
    @pytest.mark.parametrize("delta", [LEARNED_DELTA, Delta(None, fixed=0.2)])
    def test_fixed_groups_stay_bit_by_bit(self, sigma, delta):
        rule = one_layer(sigma=sigma, delta=delta)
        before = rule.init(FIRST, StochasticApproximation(0.5))
        after = before
        for _ in range(10):
            after = rule.update(after, torch.randn(4).double(), {}, 0.3)
        assert torch.equal(after.sigma, before.sigma) == (sigma.site is None)
        assert torch.equal(after.delta, before.delta) == (delta.site is None)

    def test_fixed_groups_beside_learned_ones_stay_bit_by_bit(self):
        rule = SpikeAndSlabRule(
            make_structure(
                make_block("a", 2, sigma=0, delta=0),
                make_block("b", 2, sigma=1, delta=1),
                sigmas=[Sigma(None, fixed=0.7), LEARNED_SIGMA],
                deltas=[LEARNED_DELTA, Delta(None, fixed=0.2)],
            )
        )
        before = rule.init(FIRST, StochasticApproximation(0.5))
        after = before
        for _ in range(10):
            after = rule.update(after, torch.randn(4).double(), {}, 0.3)
        assert (after.sigma == before.sigma).tolist() == [True, False]
        assert (after.delta == before.delta).tolist() == [False, True]

    def test_far_weights_in_float32(self):
        rule = one_layer(dtype=torch.float32)
        latents = rule.init(FIRST, StochasticApproximation(0.5))
        beta = torch.tensor([0.0, 1e-30, 1e6, -1e6])
        for _ in range(3):
            latents = rule.update(latents, beta, {}, 0.5)
        assert all(torch.as_tensor(value).isfinite().all() for value in latents)
        assert (prior_gradient(rule, latents, beta)).isfinite().all()
        # The Gaussian is the wide component at the scale of sigma, but its tail falls under the
        # Laplace's about 2 v1 / v0 = 200 sigma out.
        frozen = rule.init(FIRST, StochasticApproximation(0.5))
        rho = rule.update(frozen, torch.tensor([0.0, 10.0, 1e6, -1e6]), {}, 1.0).rho
        assert rho[0] < 0.1 and rho[1] > 0.99 and rho[2] == rho[3] == 0.0


class TestReadings:
    def test_site_values_are_sigma_squared_and_delta_of_the_learned_sites(self):
        rule = SpikeAndSlabRule(
            make_structure(
                make_block("a", 2, sigma=0, delta=0),
                make_block("b", 2, sigma=1, delta=1),
                sigmas=[Sigma(None, fixed=0.7), LEARNED_SIGMA],
                deltas=[LEARNED_DELTA, Delta(None, fixed=0.2)],
            )
        )
        values = rule.site_values(rule.init(FIRST, StochasticApproximation(0.5)))
        assert values.keys() == {"sigma2", "delta"}
        assert values["sigma2"] == 4.0 and values["sigma2"].shape == ()
        assert values["delta"] == pytest.approx(0.3)

    def test_the_gradient_is_that_of_the_potential(self):
        rule = three_layers()
        latents = rule.init(THREE_FIRST, StochasticApproximation(0.5, initial_penalty=0.7))
        latents = rule.update(latents, torch.randn(6).double(), RESIDUALS, 0.3)
        beta = torch.randn(6).double().requires_grad_()
        (gradient,) = torch.autograd.grad(rule.potential(latents, beta), beta)
        torch.testing.assert_close(prior_gradient(rule, latents, beta), -gradient)

    @pytest.mark.parametrize(("v1", "sparsity"), [(10.0, 0.75), (1e-4, 0.25)])
    def test_sparsity_counts_the_narrower_component(self, v1, sparsity):
        # The Laplace of scale 0.1 has variance 0.02: narrower than v1 = 10, wider than v1 = 1e-4.
        rule = SpikeAndSlabRule(
            make_structure(
                make_block("b", 4, 0.1, v1), sigmas=[LEARNED_SIGMA], deltas=[LEARNED_DELTA]
            )
        )
        latents = rule.init(FIRST, StochasticApproximation(0.5))
        latents = latents._replace(rho=torch.tensor([0.1, 0.2, 0.9, 0.3]).double())
        assert rule.sparsity(latents) == sparsity
        chains = latents._replace(rho=torch.stack([latents.rho, 1 - latents.rho]))
        assert rule.sparsity(chains).tolist() == [sparsity, 1 - sparsity]

    def test_collapsed_names_learned_deltas_at_either_end(self):
        rule = SpikeAndSlabRule(
            make_structure(
                *(make_block(f"b{n}", 10, delta=n) for n in range(4)),
                sigmas=[LEARNED_SIGMA],
                deltas=[Delta(name, a=1.0, b=1.0) for name in ("low", "high", "fine")]
                + [Delta(None, fixed=1e-9)],
            )
        )
        first = {name: torch.tensor(0.5) for name in ("low", "high", "fine")}
        latents = rule.init({**FIRST, **first}, StochasticApproximation(0.5))
        assert rule.collapsed(latents) == []
        latents = latents._replace(delta=torch.tensor([1e-5, 1 - 1e-5, 0.01, 1e-9]).double())
        assert rule.collapsed(latents) == ["low", "high"]

    def test_a_rule_pickles(self):
        rule, beta = three_layers(), torch.randn(6).double()
        copy = pickle.loads(pickle.dumps(rule))
        latents = rule.init(THREE_FIRST, StochasticApproximation(0.5))
        a, b = (r.update(latents, beta, RESIDUALS, 0.5) for r in (rule, copy))
        assert all(
            torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True)
        )

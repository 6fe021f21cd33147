# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
``to_arviz`` with the installed ArviZ, 0.x or 1.x: first on runs of a stand-in kernel under Pyro's
own ``MCMC``, whose report is known to the last digit, then on runs of ``AEBKernel``.
"""

import cProfile
import pstats
import warnings
from unittest import mock

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from matplotlib import pyplot
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.api import StreamingMCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

import pyro_aeb as aeb
from pyro_aeb.storage.inference_data import to_arviz
from pyro_aeb.storage.version import __version__
from pyro_aeb.storage.xarray_variables import to_container

ARVIZ_0 = hasattr(az, "from_pyro")
DRAWS = 20
P = 3
LEARNED = "stochastic approximation"


def never_run(*args, **kwargs):
    raise AssertionError("the model was run")


class Reported(MCMCKernel):
    """
    Draws standard normals and reports them as ``AEBKernel.diagnostics()`` does. The statistics are
    functions of the draws, so that their order can be checked: ``potential`` is half the sum of the
    squares of ``beta``, ``diverging`` tells whether that exceeds P / 2, and ``beta_rho`` is the
    sigmoid of ``beta``.
    """

    def __init__(self, shapes=None, dims=None, dtype=torch.float32, **report):
        self.shapes = shapes or {"beta": (P,), "delta": (), "sigma2": ()}
        self.dims = {"beta": ["features"], "beta_rho": ["features"], **(dims or {"y": ["data"]})}
        self.dtype = dtype
        self.report = report
        self.model = never_run
        self.transforms = {}

    def setup(self, warmup_steps, *args, **kwargs):
        self._warmup_steps = warmup_steps
        self._beta = []

    @property
    def initial_params(self):
        return {name: torch.zeros(shape, dtype=self.dtype) for name, shape in self.shapes.items()}

    def sample(self, params):
        params = {name: torch.randn(shape).to(self.dtype) for name, shape in self.shapes.items()}
        self._beta.append(params["beta"])
        return params

    def diagnostics(self):
        beta = torch.stack(self._beta[self._warmup_steps :])
        potential = 0.5 * (beta**2).flatten(1).sum(1)
        diverging = potential > P / 2
        return {
            "divergences": diverging.nonzero().squeeze(-1).tolist(),
            "sample_stats": {
                "diverging": diverging,
                "potential": potential,
                "step_size": torch.full_like(potential, 1e-3),
            },
            "adaptation": {"beta_rho": beta.sigmoid()},
            "dims": self.dims,
            "roles": {
                **{
                    name: LEARNED if name in ("delta", "sigma2") else "draw" for name in self.shapes
                },
                "y": "observed",
            },
            "settings": {"transition": "SGLD(step_size=Constant(0.001))"},
            **self.report,
        }


def run_mcmc(kernel=None, num_chains=1, spawn=False, args=(), **kwargs):
    pyro.set_rng_seed(0)
    kernel = Reported() if kernel is None else kernel
    # With one processor Pyro makes the chains one after another, and warns of it.
    with mock.patch("pyro.infer.mcmc.api.mp.cpu_count", return_value=8 if spawn else 1):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="num_chains=")
            mcmc = MCMC(
                kernel,
                num_samples=DRAWS,
                warmup_steps=5,
                num_chains=num_chains,
                mp_context="forkserver" if spawn else None,  # pickles, as "spawn" does
                disable_progbar=True,
            )
    mcmc.run(*args, **kwargs)
    return mcmc


def datasets_by_group(idata):
    """The groups by name, as Datasets."""
    if ARVIZ_0:
        return dict(idata.items())
    return {name: node.to_dataset() for name, node in idata.children.items()}


def check_report(idata, num_chains):
    """Every number in the place that the definition of ``Reported`` gives it."""
    beta = idata.posterior["beta"]
    assert beta.dims == ("chain", "draw", "features")
    assert beta.shape == (num_chains, DRAWS, P)
    potential = 0.5 * (beta**2).sum("features")
    assert idata.sample_stats["potential"].dims == ("chain", "draw")
    xarray.testing.assert_allclose(idata.sample_stats["potential"], potential)
    xarray.testing.assert_equal(
        idata.sample_stats["diverging"], idata.sample_stats["potential"] > P / 2
    )
    assert idata.adaptation["beta_rho"].dims == ("chain", "draw", "features")
    xarray.testing.assert_allclose(idata.adaptation["beta_rho"], 1 / (1 + np.exp(-beta)))


# Runs of the stand-in


@pytest.mark.parametrize("num_chains", [1, 2])
def test_groups(num_chains):
    mcmc = run_mcmc(num_chains=num_chains)
    idata = to_arviz(mcmc)
    assert type(idata).__name__ == ("InferenceData" if ARVIZ_0 else "DataTree")
    groups = datasets_by_group(idata)
    assert list(groups) == ["posterior", "sample_stats", "adaptation"]
    assert set(groups["posterior"]) == {"beta", "delta", "sigma2"}
    assert set(groups["sample_stats"]) == {"diverging", "potential", "step_size"}
    for name, values in mcmc.get_samples(group_by_chain=True).items():
        assert groups["posterior"][name].dtype == np.float32
        np.testing.assert_array_equal(groups["posterior"][name], values)
    assert groups["sample_stats"]["diverging"].dtype == bool
    for data in groups.values():
        np.testing.assert_array_equal(data["chain"], range(num_chains))
        np.testing.assert_array_equal(data["draw"], range(DRAWS))
    np.testing.assert_array_equal(groups["posterior"]["features"], range(P))
    check_report(idata, num_chains)


def test_attributes():
    idata = to_arviz(run_mcmc())
    assert idata.posterior["beta"].attrs["kind"] == "draw"
    for variable in (
        idata.posterior["delta"],
        idata.posterior["sigma2"],
        idata.adaptation["beta_rho"],
    ):
        assert variable.attrs["kind"] == LEARNED
        assert "not draws from a posterior" in variable.attrs["comment"]
    attributes = idata.posterior.attrs
    assert attributes["draws"] == "beta"
    assert attributes["stochastic_approximation"] == "delta, sigma2"
    assert attributes["transition"] == "SGLD(step_size=Constant(0.001))"
    for data in datasets_by_group(idata).values():
        assert data.attrs["inference_library"] == "pyro_aeb"
        assert data.attrs["inference_library_version"] == __version__
        assert data.attrs["pyro_version"] == pyro.__version__


def test_without_adaptation():
    kernel = Reported(adaptation={}, roles={"beta": "draw", "delta": "draw", "sigma2": "draw"})
    idata = to_arviz(run_mcmc(kernel))
    assert list(datasets_by_group(idata)) == ["posterior", "sample_stats"]
    assert idata.posterior.attrs["draws"] == "beta, delta, sigma2"
    assert "stochastic_approximation" not in idata.posterior.attrs


def test_observed_data():
    y = torch.arange(7.0)
    idata = to_arviz(run_mcmc(Reported(observed_data={"y": y}), num_chains=2))
    assert idata.observed_data["y"].dims == ("data",)
    assert idata.observed_data["y"].attrs["kind"] == "observed"
    np.testing.assert_array_equal(idata.observed_data["y"], y)


def test_dtypes():
    idata = to_arviz(run_mcmc(Reported(dtype=torch.float64)))
    assert idata.posterior["beta"].dtype == np.float64
    idata = to_arviz(run_mcmc(Reported(dtype=torch.bfloat16)))  # numpy has no such type
    assert idata.posterior["beta"].dtype == np.float32


def dims_of(shapes, dims, **report):
    """``{variable: dims}`` of the posterior, and of ``adaptation`` where there is one."""
    idata = to_arviz(
        run_mcmc(Reported({"beta": (P,), **shapes}, {"beta": ["features"], **dims}, **report))
    )
    groups = datasets_by_group(idata)
    return {
        name: variable.dims[2:]
        for group in ("posterior", "adaptation")
        for name, variable in groups[group].items()
    }


def test_axes_without_plate_get_default_names():
    dims = dims_of(
        {"w": (4, 3), "v": (2, 4, 3), "x": (2,)},
        {"w": [None, None], "v": ["layers", None, "features"]},  # x not mentioned
    )
    assert dims["w"] == ("w_dim_0", "w_dim_1")
    assert dims["v"] == ("layers", "v_dim_1", "features")
    assert dims["x"] == ("x_dim_0",)


def test_adaptation_shares_the_dims_of_its_site():
    shapes = {"net.conv": (2, 2), "net.conv_2": (2, 2)}
    rho = {
        "net.conv_rho": torch.zeros(DRAWS, 2, 2),
        "net.conv_2_rho": torch.zeros(DRAWS, 2, 2),
        "net.conv_norm": torch.zeros(DRAWS),
        "other": torch.zeros(DRAWS, 2),
    }
    plates = {name: [None, None] for name in ("net.conv", "net.conv_rho", "net.conv_2")}
    dims = dims_of(shapes, plates, adaptation=rho)
    assert dims["net.conv_rho"] == dims["net.conv"] == ("net.conv_dim_0", "net.conv_dim_1")
    assert dims["net.conv_2_rho"] == dims["net.conv_2"] == ("net.conv_2_dim_0", "net.conv_2_dim_1")
    assert dims["net.conv_norm"] == ()
    assert dims["other"] == ("other_dim_0",)


def test_adaptation_of_a_site_that_is_not_saved():
    kernel = Reported(
        dims={"gamma": ["groups"]},
        roles={"gamma": "draw"},
        adaptation={"gamma_rho": torch.zeros(DRAWS, 4)},
    )
    assert to_arviz(run_mcmc(kernel)).adaptation["gamma_rho"].dims[2:] == ("groups",)


def test_one_plate_with_two_lengths():
    dims = dims_of({"z": (5,), "u": (2, 5)}, {"z": ["features"], "u": [None, "features"]})
    assert dims["beta"] == ("features",)
    assert dims["z"] == ("z_dim_0",)
    assert dims["u"] == ("u_dim_0", "u_dim_1")
    # Labels tell which of the lengths is the plate's own.
    kernel = Reported({"beta": (P,), "z": (5,)}, {"beta": ["features"], "z": ["features"]})
    idata = to_arviz(run_mcmc(kernel), coords={"features": list("abcde")})
    assert idata.posterior["z"].dims[2:] == ("features",)
    assert idata.posterior["beta"].dims[2:] == ("beta_dim_0",)
    # A subsampled plate: the data are longer than the batch that the model last saw.
    kernel = Reported(
        {"beta": (P,), "z": (5,)},
        {"beta": ["features"], "z": ["data"], "y": ["data"]},
        observed_data={"y": torch.zeros(7)},
    )
    idata = to_arviz(run_mcmc(kernel))
    assert idata.posterior["z"].dims[2:] == ("data",)
    assert idata.observed_data["y"].dims == ("y_dim_0",)


def test_names_that_arviz_uses_itself():
    dims = dims_of(
        {"u": (2, 2), "v": (DRAWS,), "chain": (), "a/b": (2,), "a.b": ()},
        {"u": ["k", "k"], "v": ["draw"], "chain": [], "a/b": ["p/q"], "a.b": []},
    )
    assert dims["u"] == ("k", "u_dim_1")
    assert dims["v"] == ("v_dim_0",)
    assert dims["chain_"] == ()
    assert {dims["a.b"], dims["a.b_"]} == {("p.q",), ()}
    assert dims_of({}, {"beta": ["potential"]})["beta"] == ("beta_dim_0",)


def test_users_coords_and_dims():
    mcmc = run_mcmc(Reported({"beta": (P,), "w": (4, P)}, {"w": ["rows", None]}))
    idata = to_arviz(
        mcmc,
        coords={"features": ["a", "b", "c"], "columns": [10, 20, 30], "draw": range(5, 5 + DRAWS)},
        dims={"w": [None, "columns"]},
    )
    assert list(idata.posterior["features"].values) == ["a", "b", "c"]
    assert list(idata.adaptation["features"].values) == ["a", "b", "c"]
    assert idata.posterior["w"].dims[2:] == ("rows", "columns")
    assert idata.posterior["w"].sel(columns=20).shape == (1, DRAWS, 4)
    assert idata.posterior["draw"][0] == 5
    # What is chosen for a site holds for its statistics, and default names take labels too.
    idata = to_arviz(mcmc, dims={"beta": ["genes"]}, coords={"w_dim_1": ["a", "b", "c"]})
    assert idata.adaptation["beta_rho"].dims[2:] == ("genes",)
    assert idata.posterior["w"].sel(w_dim_1="b").shape == (1, DRAWS, 4)
    # Labels of the data's plate are no mistake, though no variable lies under it.
    to_arviz(run_mcmc(), coords={"data": range(7)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"coords": {"features": ["a"]}}, "1 labels for 'features', whose length is 3"),
        ({"coords": {"feature": ["a"]}}, r"labels 'feature', but the dimensions are \['chain', 'd"),
        ({"coords": {"draw": [0]}}, "'draw' of 'beta' has length 20, but coords gives it length 1"),
        ({"dims": {"betta": ["k"]}}, r"\['betta'\], but the run has only .*'beta', 'beta_rho', "),
        ({"dims": {"beta": ["k", "l"]}}, r"2 names .* for 'beta', of shape \(3,\): give 1, None"),
        ({"dims": {"beta": ["delta"]}}, "axis of 'beta' 'delta', which is taken"),
        ({"dims": {"beta": ["draw"]}}, "axis of 'beta' 'draw', which is taken"),
        ({"dims": {"beta": ["k"]}, "coords": {"k": [0]}}, "'k' of 'beta' has length 3, but coords"),
        ({"dims": {"w": ["features"]}}, "'features' of 'w' has length 4, but another variable"),
    ],
)
def test_bad_coords_and_dims(options, message):
    kernel = Reported({"beta": (P,), "delta": (), "w": (4,)}, {"beta": ["features"]})
    with pytest.raises(ValueError, match=message):
        to_arviz(run_mcmc(kernel), **options)


@pytest.mark.parametrize("engine, library", [("h5netcdf", "h5py"), ("netcdf4", "netCDF4")])
def test_netcdf_round_trip(tmp_path, engine, library):
    pytest.importorskip(library)
    kernel = Reported(
        {"beta": (P,), "delta": (), "sigma2": (), "a/b": (2, 2), "chain": ()},
        observed_data={"y": torch.arange(7)},
    )
    idata = to_arviz(run_mcmc(kernel, num_chains=2), coords={"features": ["a", "b", "c"]})
    before = {name: data.copy(deep=True) for name, data in datasets_by_group(idata).items()}
    path = str(tmp_path / "trace.nc")
    idata.to_netcdf(path, engine=engine)
    after = datasets_by_group(az.from_netcdf(path, engine=engine))
    assert after.keys() == before.keys()
    for name, data in after.items():
        xarray.testing.assert_identical(data.load(), before[name])  # attributes included
        assert {k: v.dtype for k, v in data.items()} == {
            k: v.dtype for k, v in before[name].items()
        }
        data.close()


def test_arviz_functions():
    idata = to_arviz(run_mcmc(num_chains=2), coords={"features": ["a", "b", "c"]})
    table = az.summary(idata, var_names=["beta", "delta"])
    assert list(table.index) == ["beta[a]", "beta[b]", "beta[c]", "delta"]
    for plot in (az.plot_trace, az.plot_forest):
        plot(idata, var_names=["beta"])
    pyplot.close("all")


def test_not_run():
    with pytest.raises(RuntimeError, match=r"holds no draws: call its run\(\) first"):
        to_arviz(MCMC(Reported(), DRAWS))


def test_another_kernel():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    mcmc = MCMC(NUTS(model), num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run()
    with pytest.raises(TypeError, match=r"found one of NUTS: use arviz.from_pyro\(mcmc\)"):
        to_arviz(mcmc)


def test_not_mcmc():
    streaming = StreamingMCMC(Reported(), DRAWS, 5, disable_progbar=True)
    streaming.run()
    with pytest.raises(TypeError, match="StreamingMCMC keeps none.*use pyro.infer.MCMC"):
        to_arviz(streaming)
    with pytest.raises(TypeError, match=r"takes a pyro.infer.MCMC object .* found \{'beta': 1\}"):
        to_arviz({"beta": 1})


# Runs of AEBKernel


def regression(X, y=None, batch_size=None):
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        loc = X[i] @ beta
        return pyro.sample("y", dist.Normal(loc, sigma2.sqrt()), obs=None if y is None else y[i])


def make_kernel(model, adaptation=True, **options):
    return aeb.AEBKernel(
        model,
        aeb.SGLD(step_size=aeb.Polynomial(scale=1e-3, offset=0.0, power=1 / 3)),
        adaptation=aeb.StochasticApproximation(0.1) if adaptation else None,
        steps_per_draw=2,
        **options,
    )


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 6, generator=generator)
    return X, X[:, 0] - X[:, 1] + torch.randn(40, generator=generator)


@pytest.fixture(scope="module")
def two_chains(data):
    return run_mcmc(make_kernel(regression), num_chains=2, args=data, batch_size=10)


def check_regression(idata, num_chains):
    groups = datasets_by_group(idata)
    assert dict(idata.posterior.sizes) == {"chain": num_chains, "draw": DRAWS, "features": 6}
    assert idata.posterior["beta"].dims == ("chain", "draw", "features")
    assert idata.posterior.attrs["draws"] == "beta"
    assert idata.posterior.attrs["stochastic_approximation"] == "delta, sigma2"
    statistics = {
        "diverging", "potential", "step_size", "inverse_temperature", "sa_weight", "sparsity",
        "kinetic_temperature", "sa_residual_rho", "sa_residual_sigma", "sa_residual_delta",
    }  # fmt: skip
    assert set(groups["sample_stats"]) == statistics
    for values in groups["sample_stats"].values():
        assert values.dims == ("chain", "draw")
    assert not idata.sample_stats["diverging"].any()
    # Draw d ends with step 2 (5 + d + 1) of the run, after 5 draws of warm-up.
    last_step = 2 * (5 + np.arange(DRAWS) + 1)
    for step_size in idata.sample_stats["step_size"].values:
        np.testing.assert_allclose(step_size, 1e-3 * last_step ** (-1 / 3), rtol=1e-4)
    rho = idata.adaptation["beta_rho"]
    assert rho.dims == ("chain", "draw", "features")
    assert ((rho >= 0) & (rho <= 1)).all()


def test_kernel_chains_in_sequence(two_chains):
    idata = to_arviz(two_chains)
    check_regression(idata, 2)
    for name, values in two_chains.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(idata.posterior[name], values)
        assert idata.posterior[name].dtype == np.float32


@pytest.mark.slow
def test_kernel_spawned_chains(data):
    idata = to_arviz(
        run_mcmc(make_kernel(regression), num_chains=2, spawn=True, args=data, batch_size=10)
    )
    check_regression(idata, 2)
    assert not np.array_equal(*idata.posterior["beta"].values)


def test_kernel_model_is_not_run_again(data, two_chains):
    with mock.patch.object(two_chains.kernel, "model", never_run):
        to_arviz(two_chains)


def test_kernel_netcdf_and_summary(two_chains, tmp_path):
    idata = to_arviz(two_chains, coords={"features": list("abcdef")})
    assert list(az.summary(idata, var_names=["sigma2", "delta"]).index) == ["sigma2", "delta"]
    before = {name: data.copy(deep=True) for name, data in datasets_by_group(idata).items()}
    idata.to_netcdf(str(tmp_path / "trace.nc"))
    for name, group in datasets_by_group(az.from_netcdf(str(tmp_path / "trace.nc"))).items():
        xarray.testing.assert_identical(group.load(), before[name])
        group.close()


def test_kernel_without_adaptation(data):
    idata = to_arviz(run_mcmc(make_kernel(regression, adaptation=False), args=data))
    assert "adaptation" not in datasets_by_group(idata)
    assert idata.posterior.attrs["draws"] == "beta, delta, sigma2"
    np.testing.assert_array_equal(idata.observed_data["y"], data[1])
    assert idata.observed_data["y"].dims == ("data",)


@pytest.mark.skipif(not ARVIZ_0, reason="ArviZ 1.x has no from_pyro")
@pytest.mark.filterwarnings("ignore:Could not get vectorized trace")
def test_kernel_with_arviz_from_pyro(two_chains):
    theirs = az.from_pyro(two_chains, dims={"beta": ["features"]})
    ours = to_arviz(two_chains)
    for name in ours.posterior:
        np.testing.assert_array_equal(theirs.posterior[name], ours.posterior[name])
    xarray.testing.assert_equal(theirs.sample_stats["diverging"], ours.sample_stats["diverging"])
    assert theirs.observed_data["y"].shape == (10,)  # one batch: from_pyro runs the model again


def count_calls(function, *args):
    profile = cProfile.Profile()
    result = profile.runcall(function, *args)
    return result, pstats.Stats(profile).total_calls


def take_apart(idata):
    """Return what ``build_again`` takes: the arguments of a dataset, by group."""
    return {
        name: (
            {
                key: (v.dims, v.values, v.attrs)
                for key, v in group.variables.items()
                if key in group.data_vars
            },
            {key: group.variables[key].values for key in group.coords},
            group.attrs,
        )
        for name, group in datasets_by_group(idata).items()
    }


def build_again(groups):
    """Nothing but xarray's own work: that of a ``DataTree`` may grow with the square."""
    return to_container({name: xarray.Dataset(*arguments) for name, arguments in groups.items()})


def test_many_sites_take_little_more_than_xarrays_own_work():
    """Not the square of their number, as when every axis was compared with all others."""
    shapes = {"beta": (P,), "delta": (), "sigma2": ()}
    shapes |= {f"layers.{i}.weight": (2, i % 3 + 1) for i in range(160)}
    mcmc = MCMC(
        Reported(shapes, {name: [None] * len(shape) for name, shape in shapes.items()}),
        num_samples=4, warmup_steps=0, disable_progbar=True,
    )  # fmt: skip
    mcmc.run()
    idata, ours = count_calls(to_arviz, mcmc)
    assert idata.posterior["layers.1.weight"].dims[2:] == (
        "layers.1.weight_dim_0",
        "layers.1.weight_dim_1",
    )
    _, alone = count_calls(build_again, take_apart(idata))
    assert ours <= 1.25 * alone

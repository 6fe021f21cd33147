# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A kernel's options in a checkpoint."""

from __future__ import annotations

import inspect
import io
import sys

import numpy as np
import pytest
import torch
from models import sparse_regression
from refusals import raises_with
from runs import DATA, X, Y, make_kernel, make_mcmc, resume_mcmc

import pyro_aeb as aeb
from pyro_aeb import CheckpointError, pruning, schedules, transitions
from pyro_aeb.mcmc.kernel_options import (
    FIXED,
    OPTIONS,
    from_plain,
    options_of,
    restore_kernel,
    to_plain,
)

SCHEDULES = {
    "Constant": aeb.Constant(0.3),
    "Polynomial": aeb.Polynomial(5.0, 20.0, 0.7),
    "Geometric": aeb.Geometric(0.1, 0.9, every=7),
    "Piecewise": aeb.Piecewise(0.1, {10: 0.01, 20: 0.001}),
    "Cyclical": aeb.Cyclical(0.1, period=50),
    "PruningSchedule": aeb.PruningSchedule(0.9, 0.95, 10),
}
PRUNINGS = {
    "MagnitudePruning": aeb.MagnitudePruning(SCHEDULES["PruningSchedule"], sites=["beta"], every=3),
    "ProbabilityPruning": aeb.ProbabilityPruning(0.5, freeze=True),
    "UnitPruning": aeb.UnitPruning(0.2, scope="layer"),
}
INSIDE = transitions.SGNHT(1e-3, friction=0.2, coupling=0.1)
TRANSITIONS = {
    "SGLD": aeb.SGLD(SCHEDULES["Cyclical"]),
    "SGHMC": aeb.SGHMC(1e-3, friction=0.2, gradient_noise=0.01),
    "SGNHT": INSIDE,
    "BAOAB": transitions.BAOAB(1e-3, friction=float("inf")),
    "PSGLD": transitions.PSGLD(1e-3, 0.9, 2.0, correction=True, adapt_until=100),
    "CyclicalSGMCMC": transitions.CyclicalSGMCMC(aeb.SGLD(SCHEDULES["Cyclical"]), 0.8),
    "SVRG": transitions.SVRG(INSIDE, every=7),
    "ReplicaExchange": transitions.ReplicaExchange(INSIDE, 3.0, 2.0, 5, "batch", 4),
    "ContourSGLD": transitions.ContourSGLD(1e-3, (0.0, 9.0), 5, 0.5, SCHEDULES["Polynomial"]),
    "HMC": transitions.HMC(1e-3, leapfrogs=4),
    "TunedBAOAB": transitions.TunedBAOAB(friction=0.3),
}


def save_and_load(value):
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    file.seek(0)
    return from_plain("option", torch.load(file, weights_only=True))


def option_classes(module, *bases: str) -> set[str]:
    """The dataclasses of a module that a user makes."""
    return {
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and hasattr(kind, "__dataclass_fields__")
    } - {*bases}


def test_all_options_are_in_these_tests():
    assert SCHEDULES.keys() == option_classes(schedules)
    assert PRUNINGS.keys() == option_classes(pruning, "Pruning")
    assert TRANSITIONS.keys() == option_classes(transitions)


@pytest.mark.parametrize("value", [*SCHEDULES.values(), *PRUNINGS.values(), *TRANSITIONS.values()])
def test_options_are_restored_equal(value):
    found = save_and_load(value)
    assert type(found) is type(value)
    assert repr(found) == repr(value) and found == value


def test_an_adaptation_is_restored_with_its_tensors():
    first = {"beta": torch.tensor([0.1, 0.5, 0.9])}
    value = aeb.StochasticApproximation(SCHEDULES["Polynomial"], first, initial_penalty=2.0)
    found = save_and_load(value)
    assert found.weight == value.weight and found.initial_penalty == 2.0
    assert torch.equal(found.initial_inclusion["beta"], first["beta"])
    plain_one = aeb.StochasticApproximation(0.3)
    assert save_and_load(plain_one) == plain_one


@pytest.mark.parametrize("value", [None, True, 3, -0.1, "word", float("inf")])
def test_plain_values_are_restored(value):
    found = save_and_load(value)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "value", [np.float64(0.1), np.float32(0.5), np.int64(3), [1, np.float64(2.0)]]
)
def test_numbers_of_numpy_are_restored_as_pythons(value):
    assert save_and_load(value) == (tuple(value) if isinstance(value, list) else value)


def test_hmc_of_a_checkpoint_without_jitter_has_none():
    """Else its draws would be others than those that the run began with."""
    stored = to_plain(aeb.transitions.HMC(0.1, 3, jitter=0.25))
    assert from_plain("transition", stored) == aeb.transitions.HMC(0.1, 3, jitter=0.25)
    del stored["fields"]["jitter"]
    assert from_plain("transition", stored) == aeb.transitions.HMC(0.1, 3, jitter=0.0)


def test_a_kernel_is_restored_with_all_options():
    given = {
        "transition": TRANSITIONS["SGHMC"],
        "adaptation": aeb.StochasticApproximation(SCHEDULES["Polynomial"]),
        "inverse_temperature": SCHEDULES["Geometric"],
        "steps_per_draw": 3,
        "pruning": PRUNINGS["MagnitudePruning"],
        "save": ("beta", "sigma2"),
        "links": {"beta": {"delta": "delta", "sigma": "sigma2"}},
        "freeze_after_warmup": True,
        "minibatches": "replacement",
        "seed": 11,
        "data_parallel": True,
    }
    usual = inspect.signature(aeb.AEBKernel).parameters
    assert given.keys() <= {*OPTIONS}
    for name, option in given.items():
        assert option != usual[name].default, f"{name} has to differ from what it is by default"
    stored = options_of(aeb.AEBKernel(sparse_regression, **given))
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    found = restore_kernel(torch.load(file, weights_only=True), sparse_regression, {})
    for name, option in given.items():
        assert getattr(found, name) == option, name


class Own:
    """A schedule of a user's."""

    def __call__(self, k):
        return 1e-3

    def __repr__(self):
        return "Own()"


def test_a_schedule_of_the_users_own_is_given_again(tmp_path):
    make_mcmc(make_kernel(inverse_temperature=Own()), checkpoint=tmp_path).run(X, Y, **DATA)
    said = (
        "cannot hold inverse_temperature = Own()",
        "resume(path, model, inverse_temperature=...)",
    )
    with raises_with(*said, error=CheckpointError):
        resume_mcmc(tmp_path)
    again = resume_mcmc(tmp_path, inverse_temperature=Own())
    again.run(X, Y, **DATA)
    assert again.get_samples(group_by_chain=True)["beta"].shape[1] == 16


def test_a_step_size_of_the_users_own_is_named_with_the_option_that_it_is_in():
    stored = options_of(make_kernel(step_size=Own()))
    with raises_with("cannot hold transition = Own()", error=CheckpointError):
        restore_kernel(stored, sparse_regression, {})


def test_an_option_may_change_where_a_run_does_not_count_by_it():
    stored = options_of(make_kernel())
    slower = restore_kernel(stored, sparse_regression, {"transition": aeb.SGHMC(1e-5)})
    assert slower.transition == aeb.SGHMC(1e-5) and slower.seed == 7
    for name in FIXED:
        with pytest.raises(ValueError, match=f"{name} = 1 is given, but a run keeps its seed"):
            restore_kernel(stored, sparse_regression, {name: 1})
    with pytest.raises(TypeError, match=r"\['step_sise'\] are no options"):
        restore_kernel(stored, sparse_regression, {"step_sise": 1})


@pytest.mark.parametrize(
    "module, kind",
    [
        ("os", "system"),
        ("test_settings_never_imported", "Anything"),
        ("pyro_aeb.schedules", "os.system"),
        ("pyro_aeb.kernel.aeb_kernel", "AEBKernel"),
        ("pyro_aeb.nowhere", "Constant"),
        ("pyro_aeb.schedules", "Missing"),
        ("pyro_aeb_evil.schedules", "Constant"),
    ],
)
def test_nothing_but_options_of_this_package_is_made(module, kind, monkeypatch):
    imported = []
    monkeypatch.setattr("importlib.import_module", lambda name: imported.append(name))
    before = {*sys.modules}
    with raises_with(f"{module}.{kind}", "does not have", "give it again", error=CheckpointError):
        from_plain("transition", {"class": [module, kind], "fields": {}})
    assert {*sys.modules} == before
    assert all(name.split(".")[0] == "pyro_aeb" for name in imported)


@pytest.mark.parametrize("fields", [{"rate": 1.0}, {"value": -1.0, "other": 2}, {"value": "text"}])
def test_fields_of_another_version_are_an_error(fields):
    stored = {"class": ["pyro_aeb.schedules", "Constant"], "fields": fields}
    with raises_with("inverse_temperature", "Constant", "give it again", error=CheckpointError):
        from_plain("inverse_temperature", stored)

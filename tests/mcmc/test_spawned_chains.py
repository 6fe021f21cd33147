# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains in spawned processes whose model, hook or data cannot be sent to them, and in forks of a
process that has compiled.
"""

import os
import subprocess
import sys

import pytest
import torch
from compiler_runs import run_without_compiler
from small_runs import gaussian, make_kernel

import pyro_aeb as aeb

CURES = ["top level", 'chain_method="vectorized" or "sequential"', 'mp_context="fork"']


def local_data():
    class Local:
        pass

    return Local()


@pytest.mark.parametrize(
    "model, hook, args",
    [
        (lambda: gaussian(), None, ()),
        (gaussian, lambda *args: None, ()),
        (gaussian, None, (local_data(),)),
        (gaussian, None, (iter([torch.zeros(1)]), (i for i in range(3)))),
    ],
    ids=["model", "hook", "argument", "generator"],
)
def test_what_cannot_be_pickled_gets_a_cure(model, hook, args):
    kernel = make_kernel(model, aeb.SGLD(0.01), adaptation=None)
    options = {"chain_method": "parallel", "mp_context": "spawn", "disable_progbar": True}
    mcmc = aeb.MCMC(kernel, 3, 1, num_chains=2, hook_fn=hook, **options)
    with pytest.raises(TypeError, match="cannot be sent to the process of chain 0") as info:
        mcmc.run(*args)
    assert all(cure in str(info.value) for cure in CURES)


NOTEBOOK = """
import pyro, pyro.distributions as dist, pyro_aeb as aeb
def model():
    pyro.sample("m", dist.Normal(0.0, 1.0))
kernel = aeb.AEBKernel(model, aeb.SGLD(0.01), seed=0)
mcmc = aeb.MCMC(kernel, 3, 1, num_chains=2, chain_method="parallel", mp_context="spawn",
                disable_progbar=True)
try:
    mcmc.run()
except RuntimeError as error:
    print(error)
"""


def test_a_model_of_a_notebook_gets_a_cure():
    """As in a notebook, the main module is no file that a worker could import."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", NOTEBOOK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert "ended before it had read what to run" in done.stdout, done.stderr
    assert all(cure in done.stdout for cure in CURES)


COMPILED_THEN_FORKED = """
import pyro, pyro.distributions as dist, pyro_aeb as aeb
def model():
    pyro.sample("m", dist.Normal(0.0, 1.0))
def run(chains, **options):
    kernel = aeb.AEBKernel(model, aeb.SGLD(0.01), seed=0, **options)
    mcmc = aeb.MCMC(kernel, 3, 1, num_chains=chains, disable_progbar=True,
                    chain_method="sequential" if chains == 1 else "parallel", mp_context="fork")
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["m"].shape
run(1, compile=True)
print(run(2))
"""


def test_chains_are_forked_after_a_compiled_run(tmp_path):
    assert run_without_compiler(COMPILED_THEN_FORKED, tmp_path) == "torch.Size([2, 3])\n"


FORK_OF_THREADS = """
import pyro, pyro.distributions as dist, pyro_aeb as aeb, torch
import torch._inductor.config as inductor
torch.set_num_threads(4)
inductor.compile_threads = 4
x = torch.randn(20_000, 50)

def model():
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([50]).to_event(1))
    with pyro.plate("data", 20_000):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=x.sum(-1))

def look(*args):
    assert inductor.compile_threads == 1

def run(**options):
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-6), seed=0)
    mcmc = aeb.MCMC(kernel, 3, 1, disable_progbar=True, **options)
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["w"]

alone = run()
together = run(num_chains=2, chain_method="parallel", mp_context="fork", hook_fn=look)
torch.testing.assert_close(together[:1], alone)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_chains_are_forked_from_a_process_with_threads():
    """
    A forked process has no threads of OpenMP nor of the compiler, and must not wait for any. One
    that does is ended after five minutes.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    ran = subprocess.run(
        [sys.executable, "-c", FORK_OF_THREADS],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert ran.stdout == "done\n", ran.stderr

# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Makes ``tests/mcmc/checkpoints_of_0_1``, which commit ba0b3fb wrote.

In a checkout of that commit, as ``OLD``, with this repository as ``NEW``::

    cd OLD; PYTHONPATH=$PWD python NEW/tests/tools/make_old_checkpoints.py

For every run of ``tests/helpers/old_runs.py`` the folder has one archive:

checkpoint/      what the run had written when it was interrupted in the middle
draws.zarr/      its draws, of the run that writes a trace
records.pt       all that it recorded when another process of that commit resumed it to its end
arithmetic.json  versions, and a checksum of the machine's arithmetic

The whole run without an interruption is made too, and must have the same records.
``options.json`` holds kernel options as a checkpoint does.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyro
import torch

SCRIPT = Path(__file__).resolve()
TESTS = SCRIPT.parents[1]
TO = TESTS / "mcmc" / "checkpoints_of_0_1"
sys.path.insert(0, str(TESTS / "helpers"))

import old_runs  # noqa: E402
from old_runs import OPTIONS, RUNS  # noqa: E402


def interrupt(name: str) -> None:
    """Leaves a checkpoint in the middle of the run, and all that the whole run records."""

    def hook(kernel, draw, stage, number) -> None:
        if (stage, number) == RUNS[name].stop:
            raise KeyboardInterrupt

    def start(**options):
        pyro.set_rng_seed(1)
        return old_runs.new_run(name, **options)

    mcmc, model = start(trace=None)
    old_runs.run(name, mcmc)
    torch.save(old_runs.records(mcmc, model), "whole.pt")
    mcmc, model = start(checkpoint="checkpoint", hook_fn=hook)
    try:
        old_runs.run(name, mcmc)
    except KeyboardInterrupt:
        return
    raise RuntimeError(f"{name} was not interrupted at {RUNS[name].stop}")


def resume(name: str) -> None:
    """Resumes the checkpoint to the end of the run."""
    pyro.set_rng_seed(99)
    mcmc, model = old_runs.resumed_run(name, "checkpoint")
    old_runs.run(name, mcmc)
    torch.save(old_runs.records(mcmc, model), "records.pt")
    Path("arithmetic.json").write_text(json.dumps(old_runs.arithmetic()))


def make(name: str) -> None:
    """Writes the archive of a run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, copy = Path(temporary, "folder"), Path(temporary, "copy")
        folder.mkdir()
        subprocess.run([sys.executable, SCRIPT, "interrupt", name], cwd=folder, check=True)
        shutil.copytree(folder, copy)
        subprocess.run([sys.executable, SCRIPT, "resume", name], cwd=copy, check=True)
        whole, records = torch.load(folder / "whole.pt"), torch.load(copy / "records.pt")
        assert whole.keys() == records.keys()
        for key, value in whole.items():
            assert torch.equal(value.nan_to_num(), records[key].nan_to_num()), key
        (folder / "whole.pt").unlink()
        for file in ("records.pt", "arithmetic.json"):
            shutil.copy(copy / file, folder)
        shutil.make_archive(str(TO / name), "xztar", folder)


def main() -> None:
    """Does one stage of one run, or makes everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", nargs="?", choices=["interrupt", "resume"])
    parser.add_argument("name", nargs="?", choices=[*RUNS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage:
        {"interrupt": interrupt, "resume": resume}[options.stage](options.name)
        return
    from pyro_aeb.settings import plain  # of ba0b3fb

    TO.mkdir(exist_ok=True)
    for name in RUNS:
        make(name)
    stored = [[option, plain(value)] for option, value in OPTIONS]
    (TO / "options.json").write_text(json.dumps(stored, indent=1) + "\n")
    print(f"written by {inspect.getfile(plain)}")


if __name__ == "__main__":
    main()

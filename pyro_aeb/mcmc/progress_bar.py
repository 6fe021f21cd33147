# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The progress bar of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tqdm.auto import tqdm

from pyro_aeb.mcmc.chain_group import Plan


class Bar:
    """
    The progress bar of a chain group.

    :param str name: of the group, shown after the stage.
    :param bool disable: whether to show none.
    :param int position: line of the bar, where there are several.
    :param bool leave: whether it stays when it is closed.
    """

    def __init__(
        self,
        plan: Plan,
        draws: int,
        name: str,
        disable: bool,
        position: int | None = None,
        leave: bool = True,
    ) -> None:
        self._plan = plan
        self._name = name
        self._draws = draws
        self._bar = tqdm(
            total=plan.draws,
            initial=draws,
            disable=disable,
            position=position,
            leave=leave,
            dynamic_ncols=True,
            desc=self._stage(),
        )

    def update(self, figures: Callable[[], Mapping[str, str]]) -> None:
        """Count a draw; ``figures`` is called only when they are shown."""
        self._draws += 1
        if self._draws == self._plan.warmup:
            self._bar.set_description(self._stage(), refresh=False)
        if self._bar.update():
            self._bar.set_postfix(figures(), refresh=False)

    def close(self) -> None:
        self._bar.close()

    def _stage(self) -> str:
        stage = "Warmup" if self._draws < self._plan.warmup else "Sample"
        return f"{stage}{self._name}"

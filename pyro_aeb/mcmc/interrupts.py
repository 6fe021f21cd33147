# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Ctrl-C that stops a run between two steps, so that the run can continue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """
    Defer Ctrl-C: inside, the returned function raises ``KeyboardInterrupt`` once it was pressed. A
    second Ctrl-C raises at once. Nothing changes outside the main thread, which gets no signals,
    and where Ctrl-C is ignored, as under nohup.
    """
    is_pressed = False

    def check() -> None:
        if is_pressed:
            raise KeyboardInterrupt

    def handle(number: int, frame: Any) -> None:
        nonlocal is_pressed
        check()
        is_pressed = True

    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or handler in (None, signal.SIG_IGN):
        yield check
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, handler)

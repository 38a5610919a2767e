"""Starting programs."""

from __future__ import annotations

import time

import pytest

from runta.errors import KernelError
from runta.kernel.process import run

LASTS = 0.170
"""Seconds; a wait in doubling steps of up to 50 ms would see the end after 213 ms."""


def test_the_end_of_a_program_without_pipes_is_noticed_at_once() -> None:
    """The best of some tries: the machine may be busy."""
    spent = []
    for _ in range(5):
        started = time.monotonic()
        run(["sleep", str(LASTS)], timeout=10, silent=True)
        spent.append(time.monotonic() - started)
    assert min(spent) < LASTS + 0.03


def test_a_program_without_pipes_that_does_not_end_is_ended() -> None:
    with pytest.raises(KernelError, match="did not finish"):
        run(["sleep", "60"], timeout=0.1, silent=True)

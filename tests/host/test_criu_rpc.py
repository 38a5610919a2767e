"""Asking the real CRIU."""

from __future__ import annotations

from pathlib import Path

import pytest

from runta.errors import KernelError
from runta.kernel.criu_rpc import ask_features
from runta.kernel.host import find_criu
from runta.kernel.process import run
from runta.settings import load_settings


def test_features_are_found_by_trying() -> None:
    criu = find_criu(load_settings())
    features = ask_features(criu)
    for name, found in (("mem_dirty_track", features.dirty_tracking), ("uffd-noncoop", features.lazy_pages)):
        assert (run([criu, "check", "--feature", name], timeout=30, check=False).returncode == 0) is found, name


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\nprintf nonsense\n"])
def test_a_criu_that_does_not_answer(tmp_path: Path, script: str) -> None:
    program = tmp_path / "criu"
    program.write_text(script)
    program.chmod(0o755)
    with pytest.raises(KernelError):
        ask_features(program)

"""What the service is told about memory, and what it finds out before it promises anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runta.engine.lazy import require_lazy
from runta.errors import ConfigError, FailedPrecondition
from runta.kernel import lazy, merging
from runta.settings import load_settings


@pytest.mark.parametrize(("text", "on"), [("1", True), ("on", True), ("False", False), ("0", False), ("", False)])
def test_ksm_is_a_switch(text: str, on: bool, tmp_path: Path) -> None:
    assert load_settings({"RUNTA_KSM": text}, config_path=tmp_path / "none").ksm is on


def test_a_switch_is_on_or_off(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ksm is 'perhaps'"):
        load_settings({"RUNTA_KSM": "perhaps"}, config_path=tmp_path / "none")
    (tmp_path / "config.toml").write_text("[local]\nksm = true\ndump_dir = '/dev/shm/x'\n")
    found = load_settings({}, config_path=tmp_path / "config.toml")
    assert found.ksm
    assert found.dump_dir == Path("/dev/shm/x")


def test_merging_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if merging.RUN.exists():
        assert merging.try_merging(sys.executable) is None
    monkeypatch.setattr(merging, "RUN", tmp_path / "none")
    assert merging.try_merging(sys.executable) == "the kernel lacks CONFIG_KSM"
    assert not merging.is_merging()


def test_merging_is_started_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(merging, "RUN", tmp_path / "run")
    (tmp_path / "run").write_text("0")
    merging.start_merging()
    assert merging.is_merging()


def test_a_process_without_merged_memory_saves_nothing() -> None:
    assert merging.read_saved_bytes([os.getpid(), 1 << 30]) == 0


def test_a_lazy_restore_is_refused_with_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runta.engine.lazy.try_userfaultfd", lambda: "Operation not permitted")
    with pytest.raises(FailedPrecondition, match="Operation not permitted"):
        require_lazy()
    monkeypatch.setattr("runta.engine.lazy.try_userfaultfd", lambda: None)
    require_lazy()


def test_the_trial_follows_the_kernels_rule_and_keeps_this_process_as_it_was() -> None:
    before = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
    assert (lazy.try_userfaultfd() is None) is allowed
    assert Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0] == before


def test_no_pager_is_found_where_none_was_started(tmp_path: Path) -> None:
    assert lazy.find_pager(tmp_path) is None
    (tmp_path / "lazy-pages.pid").write_text("")
    assert lazy.find_pager(tmp_path) is None
    assert not lazy.is_complete(tmp_path)

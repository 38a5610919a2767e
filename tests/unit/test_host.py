"""Looking at the host: every finding is complete, whatever the host is like; versions are read as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from runta.errors import FailedPrecondition, KernelError
from runta.kernel import host, installed, probes
from runta.kernel.criu_rpc import Features
from runta.kernel.host import Check, check_host, criu_version, find_criu, find_init_binary, parse_version, runc_version
from runta.settings import Settings

NAMES = {
    "root",
    "kernel",
    "user namespaces",
    "overlay",
    "idmapped mounts",
    "cgroups",
    "subordinate ids",
    "runc",
    "criu",
    "criu check",
    "random numbers",
    "dirty tracking",
    "lazy restore",
    "memory merging",
    "pycriu",
    "guest init",
    "images",
    "state directory",
    "disk space",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run", lib_dir=tmp_path / "lib")


def program(path: Path, says: str, code: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_every_finding_is_complete(settings: Settings) -> None:
    checks = check_host(settings)
    assert {check.name for check in checks} == NAMES
    for check in checks:
        assert check.found
        assert (check.cost == "") == check.ok
        assert (check.mend == "") == check.ok


def test_nothing_is_left_behind(settings: Settings) -> None:
    settings.state_dir.mkdir()
    check_host(settings)
    assert list(settings.state_dir.iterdir()) == []


def test_bare_host(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "tool_path", lambda: "/nowhere")
    found = by_name(check_host(settings))
    for name in ("runc", "criu", "criu check", "images"):
        assert not found[name].ok, name
        assert found[name].required
    assert "CRIU is not installed" in found["criu"].found


def test_old_criu_is_told_with_its_cost(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "has_vdso_getrandom", lambda: True)
    program(settings.lib_dir / "criu/bin/criu", "Version: 4.1.1")
    found = by_name(check_host(settings))
    assert not found["criu"].ok
    assert found["criu"].found.startswith("4.1.1 at ")
    assert not found["random numbers"].ok
    assert "same random bytes" in found["random numbers"].cost
    monkeypatch.setattr(probes, "has_vdso_getrandom", lambda: False)
    assert by_name(check_host(settings))["random numbers"].ok


def test_kernel_without_dirty_tracking_costs_little(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    program(settings.lib_dir / "criu/bin/criu", "Version: 4.2.1", code=0)
    monkeypatch.setattr(host, "ask_features", lambda _: Features(dirty_tracking=True, lazy_pages=True))
    assert by_name(check_host(settings))["dirty tracking"].ok
    monkeypatch.setattr(host, "ask_features", lambda _: Features(dirty_tracking=False, lazy_pages=True))
    check = by_name(check_host(settings))["dirty tracking"]
    assert not check.ok
    assert not check.required
    assert "no incremental dumps" in check.cost


def test_private_criu_comes_first(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path / "bin/criu", "Version: 4.2")
    monkeypatch.setattr(installed, "tool_path", lambda: str(own.parent))
    assert find_criu(settings) == own
    private = program(settings.lib_dir / "criu/bin/criu", "Version: 4.2.1")
    assert find_criu(settings) == private


def test_no_criu_says_what_to_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "tool_path", lambda: "/nowhere")
    with pytest.raises(FailedPrecondition, match="make setup"):
        find_criu(settings)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Version: 4.2.1\n", (4, 2, 1)),
        ("Version: 4.2\nGitID: v4.2-3-g1a2b3c4\n", (4, 2)),
        ("Version: 3.17.1\n", (3, 17, 1)),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n", (1, 1, 5)),
        ("6.18.44-fc-v595", (6, 18, 44)),
        ("6.1.0-28-amd64", (6, 1, 0)),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_version_order() -> None:
    assert (4, 2) >= host.MIN_CRIU
    assert (4, 2, 1) >= host.MIN_CRIU
    assert (4, 10) >= host.MIN_CRIU
    assert (4, 1, 1) < host.MIN_CRIU


def test_versions_of_programs(tmp_path: Path) -> None:
    assert criu_version(program(tmp_path / "criu", "Version: 4.2.1")) == (4, 2, 1)
    assert runc_version(str(program(tmp_path / "runc", "runc version 1.3.6"))) == "1.3.6"
    with pytest.raises(KernelError, match="does not tell its version"):
        criu_version(program(tmp_path / "mute", "hello"))
    with pytest.raises(KernelError, match="ended with code 3"):
        criu_version(program(tmp_path / "broken", "Version: 4.2", code=3))


def test_guest_init_comes_with_the_package() -> None:
    assert find_init_binary().name == "runta-init"


def test_file_system_of(tmp_path: Path) -> None:
    assert probes.file_system_of(Path("/proc/self")) == "proc"
    assert probes.file_system_of(Path("/dev/shm")) == "tmpfs"
    assert probes.file_system_of(tmp_path) not in ("unknown", "proc")


def test_nearest_existing(tmp_path: Path) -> None:
    assert probes.nearest_existing(tmp_path / "a/b/c") == tmp_path

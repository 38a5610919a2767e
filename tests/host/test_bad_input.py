"""A clear error with what, why and what to do; nothing changed, nothing left behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runta import Runta
from runta.errors import ApiError
from tests.host.conftest import House


def refused(house: House, *words: str) -> str:
    done = house.cli(*words, check=False)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("exec", "alpa", "--", "true"), "did you mean alpha?"),
        (("inspect", "alpa"), "did you mean alpha?"),
        (("rm", "nobody"), "alpha"),
        (("snapshot", "restore", "nothing", "x"), "no checkpoint"),
        (("snapshot", "create", "nobody", "x"), "no runtime"),
        (("run", "--name", "alpha"), "a runtime named alpha exists"),
        (("run", "--name", "a b/c"), "is not a name"),
        (("run", "--name", "big", "--cpus", "4096"), "CPUs can't be had"),
        (("run", "--name", "big", "--memory", "99999999"), "this host has"),
        (("run", "--name", "what", "--image", "debain"), "debian"),
        (("snapshot", "create", "alpha", "../up"), "is not a name"),
    ],
)
def test_refusals(house: House, runta: Runta, words: tuple[str, ...], said: str) -> None:
    runta.runtimes.create("alpha")
    before = {runtime.id for runtime in runta.runtimes.list()}
    text = refused(house, *words)
    assert said in text
    assert {runtime.id for runtime in runta.runtimes.list()} == before


def test_exec_where_nothing_runs(house: House, runta: Runta) -> None:
    runtime = runta.runtimes.create("still")
    runtime.pause()
    assert "runta resume still" in refused(house, "exec", "still", "--", "true")
    runtime.shutdown()
    assert "runta boot still" in refused(house, "exec", "still", "--", "true")
    assert "runta boot still" in refused(house, "snapshot", "create", "still", "ck")


def test_a_command_that_does_not_exist(house: House, runta: Runta) -> None:
    runta.runtimes.create("shell")
    done = house.cli("exec", "shell", "--", "no-such-program", check=False)
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_a_refused_dump_names_its_cause_and_leaves_the_runtime_running(house: House, runta: Runta) -> None:
    runtime = runta.runtimes.create("nested")
    runtime.exec("setsid unshare -U sleep 300 >/dev/null 2>&1 & sleep 0.2")
    text = refused(house, "snapshot", "create", "nested", "never")
    assert "namespace" in text
    assert "what to do" in text
    assert runtime.exec("pgrep -c sleep").stdout_text == "1\n"
    assert list(runta.checkpoints.list()) == []
    runtime.exec("pkill sleep")
    assert str(runtime.checkpoints.create(name="now").state) == "ready"


def test_a_damaged_checkpoint_is_not_restored(house: House, runta: Runta) -> None:
    runtime = runta.runtimes.create("victim")
    checkpoint = runtime.checkpoints.create(name="damaged")
    pages = next((house.layout.checkpoint(checkpoint.id).dump).glob("pages-*.img"))
    data = bytearray(pages.read_bytes())
    data[100] ^= 1
    pages.write_bytes(data)
    with pytest.raises(ApiError, match="damaged"):
        runta.runtimes.create("from-damaged", checkpoint_id=checkpoint.id)
    assert [found.name for found in runta.runtimes.list()] == ["victim"]


def test_a_second_service_is_refused(house: House) -> None:
    env = {**house.env, "RUNTA_RUN_DIR": str(house.root / "other-run")}
    done = subprocess.run([sys.executable, "-m", "runta", "serve"], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "another service owns" in done.stderr


def test_root_without_its_powers_is_told_what_is_missing(house: House, tmp_path) -> None:
    env = {**house.env, "RUNTA_RUN_DIR": str(tmp_path / "run"), "RUNTA_STATE_DIR": str(tmp_path / "state")}
    words = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-m", "runta", "serve"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "missing capabilities: sys_admin" in done.stderr
    assert list(tmp_path.iterdir()) == []

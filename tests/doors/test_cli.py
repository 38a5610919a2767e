"""The command line as a subprocess, before the real service and a plain engine."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runta.models import CheckpointState
from tests.doors.conftest import Service

TIMEOUT = 60


class Cli:
    """`runta …` before one service; answers a finished process."""

    def __init__(self, service: Service) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNTA_")}
        self.env = {
            **kept,
            "RUNTA_RUN_DIR": str(service.settings.run_dir),
            "RUNTA_STATE_DIR": str(service.settings.state_dir),
            "RUNTA_LISTEN": service.url.removeprefix("http://"),
        }

    def start(self, *words: str, **options) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "runta", *words],
            env={**self.env, **options.pop("env", {})},
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def __call__(self, *words: str, code: int = 0, stdin: bytes | None = None, **options):
        process = self.start(*words, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, **options)
        out, err = process.communicate(stdin, timeout=TIMEOUT)
        assert process.returncode == code, (words, process.returncode, out, err)
        assert b"Traceback" not in err
        return subprocess.CompletedProcess(words, code, out.decode(errors="replace"), err.decode())

    def json(self, *words: str, code: int = 0):
        return json.loads(self(*words, code=code).stdout)


@pytest.fixture
def cli(service: Service) -> Cli:
    return Cli(service)


@pytest.fixture
def box(cli: Cli) -> str:
    return cli("run", "--name", "box").stdout.strip()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Runtimes


def test_fork_and_rollback(cli: Cli, box: str):
    assert len(cli("fork", "box", "f", "-n", "2").stdout.split()) == 2
    cli("fork", "box", "alone")
    assert {"f-1", "f-2", "alone"} <= set(cli("ps").stdout.split())
    taken = cli("fork", "box", "f", "-n", "3", code=1)
    assert len(taken.stdout.split()) == 1
    assert "already" in taken.stderr
    cli("snapshot", "create", "box", "ck")
    assert cli("snapshot", "rollback", "box", "ck").stdout.strip() == box
    cli("snapshot", "rollback", "alone", "ck", code=1)


def test_run(cli: Cli):
    words = ("--name", "box", "--cpus", "2", "--memory", "512", "--memory-max", "1024", "--image", "debian")
    more = ("-e", "A=1=2", "--env", "B=", "-p", "80", "-p", "443/https", "--idle-timeout", "60")
    made = cli("run", *words, *more)
    assert len(made.stdout.strip()) == 36
    info = cli.json("ps", "--json")["runtimes"][0]
    assert info["id"] == made.stdout.strip()
    assert info["resources"]["requests"] | {"disk_gib": 0} == {"memory_mib": 512, "vcpus": 2, "disk_gib": 0}
    assert info["resources"]["limits"] == {"memory_mib": 1024}
    assert info["environment_variables"] == {"A": "1=2", "B": ""}
    assert [spec["runtime_port"] for spec in info["ingress_specs"]] == [80, 443]
    assert info["idle_policy"]["suspend_after_secs"] == 60
    assert cli.json("run", "--json")["runtime"]["status"] == "running"


def test_ps(cli: Cli, box: str):
    cli("run", "--name", "off")
    cli("shutdown", "off")
    lines = cli("ps").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATUS", "VCPUS", "MEMORY", "AGE"]
    assert [line.split()[1] for line in lines[1:]] == ["box"]
    assert [found["display_name"] for found in cli.json("--json", "ps", "-a")["runtimes"]] == ["box", "off"]


def test_a_life(cli: Cli, box: str):
    for verb, status in (("pause", "paused"), ("resume", "running"), ("shutdown", "shutdown"), ("boot", "running")):
        assert cli(verb, "box").stdout == ""
        assert cli.json("inspect", "box", "--json")["status"] == status
        assert cli.json(verb, "--json", "box")["runtime"]["status"] == status
    assert "name                           box" in cli("inspect", box).stdout
    assert cli("rm", "box").stdout == ""
    assert cli.json("ps", "-a", "--json") == {"runtimes": []}


def test_one_failure_does_not_stop_the_others(cli: Cli, box: str):
    cli("run", "--name", "two")
    assert "no runtime 'nobody'" in cli("rm", "nobody", "two", "box", code=1).stderr
    assert cli.json("ps", "--json") == {"runtimes": []}


# Exec


def test_exec_passes_output_and_code(cli: Cli, box: str):
    done = cli("exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert cli("exec", box, "printf", "%s|", "--name", "-x", "--", "a b").stdout == "--name|-x|--|a b|"
    assert "no-such-program" in cli("exec", "box", "no-such-program", code=127).stderr
    cli("exec", "box", "sh", "-c", "kill -9 $$", code=137)


def test_exec_options(cli: Cli, box: str):
    done = cli("exec", "--env", "A=x y", "-e", "B=2", "--cwd", "/usr", "box", "sh", "-c", 'echo "$A$B"; pwd')
    assert done.stdout == "x y2\n/usr\n"
    cli("exec", "--timeout", "0.3", "box", "sleep", "60", code=124)


def test_exec_stdin(cli: Cli, box: str):
    data = os.urandom(3_000_000).hex().encode()
    assert cli("exec", "-i", "box", "cat", stdin=data).stdout == data.decode()
    assert cli("exec", "box", "cat", stdin=b"nobody reads this").stdout == ""
    assert cli("exec", "-i", "box", "cat", stdin=b"").stdout == ""
    cli("exec", "-i", "box", "sh", "-c", "exit 5", stdin=data, code=5)


def test_exec_output_comes_as_it_is_made(cli: Cli, box: str):
    process = cli.start("exec", "-i", "box", "cat", stdin=subprocess.PIPE)
    for piece in (b"one\n", b"\xff\x00two\n"):
        process.stdin.write(piece)
        process.stdin.flush()
        assert process.stdout.readline() == piece
    assert process.communicate(timeout=TIMEOUT) == (b"", b"")
    assert process.returncode == 0


def test_exec_into_a_closed_pipe(cli: Cli, box: str):
    process = cli.start("exec", "box", "yes")
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(TIMEOUT) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    wait_for(lambda: cli.json("tasks", "box", "--json")["tasks"][0]["exit_code"] is not None)


def test_exec_as_json(cli: Cli, box: str):
    told = cli.json("exec", "--json", "box", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (told["exit_code"], told["stdout"], told["stderr"]) == (3, "out\n", "err\n")


def test_exec_detached_tasks_and_attach(cli: Cli, box: str):
    wait = "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 4"
    number = cli("exec", "-d", "box", "--", "sh", "-c", wait).stdout.strip()
    assert number.isdigit()
    assert "begun" in cli("tasks", "box").stdout
    attached = cli.start("attach", "box")
    assert attached.stdout.readline() == b"begun\n"
    cli("exec", "box", "touch", "go")
    assert attached.communicate(timeout=TIMEOUT) == (b"done\n", b"")
    assert attached.returncode == 4
    assert cli("attach", "box", number, code=4).stdout == "begun\ndone\n"
    assert cli.json("attach", "--json", "box", number, code=4)["stdout"] == "begun\ndone\n"
    assert cli.json("tasks", "box", "--json")["tasks"][0]["exit_code"] == 4
    assert "no task 99" in cli("attach", "box", "99", code=2).stderr
    assert cli.json("exec", "-d", "--json", "box", "true")["task_id"] > int(number)


def test_exec_of_a_terminal_without_one(cli: Cli, box: str):
    done = cli("exec", "-t", "box", "sh", "-c", "tty; stty size; echo err >&2", env={"TERM": "dumb"})
    assert done.stdout.startswith("/dev/pts/")
    assert "24 80\r\nerr\r\n" in done.stdout
    assert cli("exec", "-t", "box", "sh", "-c", "echo $TERM", env={"TERM": "vt100"}).stdout == "vt100\r\n"


def test_interrupting_exec(cli: Cli, box: str):
    process = cli.start(
        "exec", "box", "sh", "-c", "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (7, b"caught\n", b"")


def test_interrupting_exec_twice_leaves(cli: Cli, box: str):
    process = cli.start("exec", "box", "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done")
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"no\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    wait_for(lambda: cli.json("tasks", "box", "--json")["tasks"][0]["exit_code"] is not None)


def test_exec_refusals(cli: Cli, box: str):
    cli("pause", "box")
    assert "paused" in cli("exec", "box", "true", code=1).stderr
    assert "no runtime" in cli("exec", "nobody", "true", code=1).stderr
    assert "exclude each other" in cli("exec", "-d", "-i", "box", "cat", code=2).stderr
    assert "K=V" in cli("exec", "-e", "A", "box", "cat", code=2).stderr
    cli("exec", "box", code=2)
    cli("exec", "box", "--", code=2)


# Copying


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub/file").write_bytes(b"content" * 100_000)
    (root / "run").write_text("#!/bin/sh\necho ran\n")
    (root / "run").chmod(0o755)
    return root


def test_cp_directories(cli: Cli, box: str, tree: Path, tmp_path: Path):
    cli("cp", str(tree), "box:/root/new")
    assert cli("exec", "box", "new/run").stdout == "ran\n"
    cli("cp", str(tree), "box:/root/new")
    assert cli("exec", "box", "new/tree/run").stdout == "ran\n"
    cli("exec", "box", "rm", "-r", "new/tree")
    cli("cp", f"{tree}/.", "box:/root/new")
    cli("exec", "box", "test", "-e", "new/tree", code=1)
    cli("cp", "box:/root/new", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_bytes() == (tree / "sub/file").read_bytes()
    cli("cp", "box:/root/new", str(tmp_path / "back"))
    assert (tmp_path / "back/new/run").exists()
    cli("cp", "box:/root/new/.", str(tmp_path / "merged"))
    assert (tmp_path / "merged/run").exists()


def test_cp_files(cli: Cli, box: str, tree: Path, tmp_path: Path):
    cli("cp", str(tree / "run"), "box:named")
    assert cli("exec", "box", "./named").stdout == "ran\n"
    cli("exec", "box", "mkdir", "dir")
    cli("cp", str(tree / "run"), "box:/root/dir")
    cli("cp", str(tree / "sub/file"), "box:/root/other/")
    assert cli("exec", "box", "dir/run").stdout == "ran\n"
    cli("exec", "box", "test", "-f", "other/file")
    cli("cp", "box:named", f"{tmp_path}/down/")
    assert (tmp_path / "down/named").stat().st_mode & 0o777 == 0o755
    assert cli.json("cp", "--json", "box:named", str(tmp_path / "j"))["action"] == "cp"


def test_cp_tar_streams(cli: Cli, box: str, tree: Path):
    with cli.start("cp", "box:/root", "-") as process:
        packed = io.BytesIO(process.stdout.read())
    with tarfile.open(fileobj=packed) as archive:
        assert archive.getnames() == ["root"]
    packed = subprocess.run(["tar", "-C", tree, "-c", "."], capture_output=True, check=True).stdout
    cli("cp", "-", "box:/root/from-tar", stdin=packed)
    assert cli("exec", "box", "from-tar/run").stdout == "ran\n"


def test_cp_refusals(cli: Cli, box: str, tmp_path: Path):
    assert "nothing" in cli("cp", str(tmp_path / "nothing"), "box:/x", code=1).stderr
    assert "nothing" in cli("cp", "box:/nothing", str(tmp_path / "x"), code=1).stderr
    assert "NAME:/PATH" in cli("cp", "a", "b", code=2).stderr
    assert "NAME:/PATH" in cli("cp", "box:/a", "box:/b", code=2).stderr


# Snapshots and images


@pytest.mark.parametrize("group", ["snapshot", "checkpoint"])
def test_snapshots(cli: Cli, box: str, group: str):
    cli("exec", "box", "sh", "-c", "echo kept > file")
    made = cli(group, "create", "box", "ck").stdout.strip()
    lines = cli(group, "ls").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "KIND", "SOURCE", "AGE"]
    assert lines[1].split()[:5] == [made, "ck", "ready", "full", "box"]
    assert cli.json(group, "ls", "--json")["checkpoints"][0]["id"] == made
    assert cli.json(group, "inspect", "ck", "--json")["size_bytes"] == 4096
    fork = cli(group, "restore", "ck", "fork").stdout.strip()
    assert cli("exec", fork, "cat", "file").stdout == "kept\n"
    assert cli.json(group, "restore", "--json", made, "two")["runtime"]["display_name"] == "two"
    assert cli(group, "rm", "ck").stdout == ""
    assert "no checkpoint 'ck'" in cli(group, "rm", "ck", code=1).stderr
    assert cli.json(group, "create", "--json", "box", "again")["checkpoint"]["state"] == "ready"


def test_a_snapshot_that_fails(cli: Cli, box: str, service: Service):
    create = service.engine.create_checkpoint

    async def fail(ref, *, name, kind):
        made = await create(ref, name=name, kind=kind)
        failed = replace(made, state=CheckpointState.FAILED, error_code="dump_failed")
        service.engine.checkpoints[made.id] = failed
        return failed

    service.engine.create_checkpoint = fail
    done = cli("snapshot", "create", "box", "ck", code=1)
    assert done.stdout == ""
    assert done.stderr == "runta: checkpoint ck failed\n  why: dump_failed\n"


def test_images(cli: Cli, tmp_path: Path):
    assert "debian" in cli("image", "ls").stdout
    built = cli("image", "build", "busybox").stdout.strip()
    assert built in cli("image", "ls", "--json").stdout
    archive = tmp_path / "root.tar"
    archive.write_bytes(b"x" * 1000)
    cli("image", "import", str(archive), "mine")
    imported = json.loads(cli("image", "import", "--json", "-", "piped", stdin=b"y" * 500).stdout)["image"]
    assert (imported["name"], imported["size_bytes"]) == ("piped", 500)
    cli("image", "rm", "mine")
    assert "no image 'mine'" in cli("image", "rm", "mine", code=1).stderr


# The host


def test_env(cli: Cli, service: Service):
    lines = cli("env").stdout.splitlines()
    assert lines == [f"export RUNTA_ENDPOINT={service.url}", f"export RUNTA_TOKEN={service.token}"]
    told = cli.json("env", "--json")
    assert cli("ps", env=told).stdout.startswith("ID")
    assert "no TCP listener" in cli("env", code=1, env={"RUNTA_LISTEN": ""}).stderr


def test_doctor(cli: Cli):
    for words in (("doctor",), ("doctor", "-v")):
        process = cli.start(*words)
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode in (0, 1)
        assert b"this host is" in out
        assert err == b""
    process = cli.start("doctor", "--json")
    told = json.loads(process.communicate(timeout=TIMEOUT)[0])
    assert told["ok"] is (process.returncode == 0)
    assert {"name", "ok", "found", "mend"} <= told["checks"][0].keys()


# Errors and help


def test_errors_are_told_in_three_lines(cli: Cli, box: str):
    done = cli("run", "--name", "box", code=1)
    assert done.stdout == ""
    assert done.stderr == "runta: there is already a runtime named 'box'\n  what to do: choose another name\n"


@pytest.mark.parametrize("words", [("--json", "run", "--name", "box"), ("run", "--json", "--name", "box")])
def test_errors_as_json(cli: Cli, box: str, words: tuple[str, ...]):
    done = cli(*words, code=1)
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["status_code"], error["what_to_do"]) == ("already_exists", 409, "choose another name")
    assert done.stdout == ""


def test_usage(cli: Cli):
    for words in (
        ("bogus",),
        ("run", "--bogus"),
        ("rm",),
        ("run", "--cpus", "many"),
        ("run", "-p", "99999"),
        ("ps", "x"),
    ):
        done = cli(*words, code=2)
        assert done.stdout == ""
        assert done.stderr.startswith("runta: ")
        assert "--help" in done.stderr or "not" in done.stderr
    assert json.loads(cli("--json", "run", "--cpus", "x", code=2).stderr)["error"]["code"] == "usage"


def test_help_and_version(cli: Cli):
    for words in (("--help",), ("-h",)):
        told = cli(*words).stdout
        assert "snapshot" in told
        assert "checkpoint " not in told
    for words in (("exec", "--help"), ("snapshot", "--help"), ("snapshot", "create", "--help"), ("image", "--help")):
        assert "Usage: runta" in cli(*words).stdout
    assert cli("--version").stdout == cli("-V").stdout
    assert cli("--json", "--version").stdout == cli("-V").stdout


def test_every_command_knows_json(cli: Cli):
    from runta.cli.app import _COMMANDS

    groups = {
        "snapshot": ("create", "ls", "restore", "rm", "inspect"),
        "image": ("ls", "build", "import", "rm"),
        "secret": ("set", "ls", "rm"),
    }
    groups["checkpoint"] = groups["snapshot"]
    for name in _COMMANDS:
        for words in [(name, inner) for inner in groups[name]] if name in groups else [(name,)]:
            assert "--json" in cli(*words, "--help").stdout


def is_executable_for_all(program: Path) -> bool:
    whole = program.resolve()
    return all(path.stat().st_mode & 0o001 for path in (whole, *whole.parents, *program.parents))


def test_no_service_and_no_root(cli: Cli, tmp_path: Path):
    """Somebody else than root can't start the service, and is told so."""
    tmp_path.chmod(0o711)
    away = {"RUNTA_RUN_DIR": str(tmp_path / "none"), "RUNTA_STATE_DIR": str(tmp_path / "state"), "HOME": "/nonexistent"}
    if os.geteuid() == 0 and is_executable_for_all(Path(sys.executable)):
        done = cli("ps", code=1, env=away, user=65534, group=65534, extra_groups=[])
        assert "only root" in done.stderr
        assert "RUNTA_ENDPOINT" in done.stderr
    elsewhere = {"RUNTA_ENDPOINT": f"unix:{tmp_path}/none.sock"}
    assert "can't connect" in cli("ps", code=1, env=elsewhere).stderr
    assert "no token" in cli("ps", code=1, env={"RUNTA_ENDPOINT": "http://127.0.0.1:1"}).stderr

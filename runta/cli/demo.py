"""The walk of the README with real runtimes: `python -m runta.cli.demo` (`make demo`).

It has a service and a state directory of its own, borrows the host's images, shows each command with its output and
time, and removes everything it made. It uses the command and the SDK as a user would.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runta.settings import Settings, load_settings

_MODE_PASS = 0o711
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 30.0
_COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/n; sleep 0.05; done"

_WALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("A runtime: a sandbox of its own", ("run", "--name", "src", "--cpus", "2", "--memory", "1024")),
    ("A file in it", ("exec", "src", "--", "sh", "-lc", "echo hello-from-runtime > /tmp/hello.txt")),
    ("A program that counts, twenty times a second", ("exec", "-d", "src", "--", "sh", "-c", _COUNTER)),
    ("A checkpoint of all of it: files and live processes", ("snapshot", "create", "src", "ck")),
    ("", ("snapshot", "ls")),
    ("A new runtime from it; its counter goes on from the same instruction", ("snapshot", "restore", "ck", "restored")),
    ("", ("exec", "restored", "--", "cat", "/tmp/hello.txt")),
    ("", ("exec", "restored", "--", "cat", "/tmp/n")),
    ("And one more", ("snapshot", "restore", "ck", "forked")),
    ("", ("exec", "forked", "--", "cat", "/tmp/n")),
    ("Each goes its own way", ("exec", "forked", "--", "sh", "-c", "echo changed | tee /tmp/hello.txt")),
    ("", ("exec", "restored", "--", "cat", "/tmp/hello.txt")),
    ("", ("ps",)),
)  # fmt: skip

_SDK = """\
from runta import Runta

with Runta() as client:
    for name in ("src", "restored", "forked"):
        runtime = client.runtimes.get(name)
        result = runtime.exec("cat /tmp/n")
        print(f"{name}: the counter stands at {result.stdout_text.strip()}")
"""

_END = ("rm", "src", "restored", "forked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One walk: `env` points every command at the demo's own service."""

    env: Mapping[str, str]

    def walk(self) -> int:
        """Every step; stops at the first that fails, and returns its exit code."""
        for title, words in _WALK:
            if title:
                say(f"\n# {title}")
            code = self._show(["runta", *words], self.command("-m", "runta", *words))
            if code != 0:
                return code
        say("\n# The same with the Python SDK")
        say(textwrap.indent(_SDK, "    ").rstrip())
        return self._show(["python", "-c", "…"], self.command("-c", _SDK))

    def command(self, *words: str) -> list[str]:
        """This Python with the demo's settings on top of the environment there is."""
        return ["env", *(f"{name}={value}" for name, value in self.env.items()), sys.executable, *words]

    def _show(self, shown: Sequence[str], argv: Sequence[str]) -> int:
        say(f"$ {' '.join(_quote(word) for word in shown)}")
        start = time.monotonic()
        code = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode
        took = time.monotonic() - start
        say(f"  ({took:.2f} s)" if code == 0 else f"  (failed with code {code} after {took:.2f} s)")
        return code

    @contextlib.contextmanager
    def service(self, log: Path, socket: Path) -> Iterator[None]:
        """The demo's own service, while the block runs."""
        with log.open("wb") as file:
            child = subprocess.Popen(
                self.command("-m", "runta", "serve"), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            self._wait(child, log, socket)
            yield
        finally:
            child.terminate()
            try:
                child.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _wait(self, child: subprocess.Popen[bytes], log: Path, socket: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not socket.is_socket():
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the service did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def clean(self) -> None:
        """Delete the demo's runtimes and its checkpoint; what was never made is no error."""
        for words in (_END, ("snapshot", "rm", "ck")):
            subprocess.run(self.command("-m", "runta", *words), capture_output=True, check=False)


def say(line: str) -> None:
    print(line, flush=True)


def _quote(word: str) -> str:
    return word if word and not set(word) & set(" ;$()'\"<>") else f"'{word}'"


@contextlib.contextmanager
def make_place(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """State and run directory of the demo, with the host's images; gone afterwards.

    0711, because runc walks the way to a runtime's root file system as the sandbox's unprivileged root.
    """
    place = Path(tempfile.mkdtemp(prefix="runta-demo-", dir="/var/tmp"))
    try:
        state, run = place / "state", place / "run"
        for path in (place, state, run):
            path.mkdir(exist_ok=True)
            path.chmod(_MODE_PASS)
        (state / "images").symlink_to(settings.state_dir / "images")
        yield state, run
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> int:
    """Walk, and clean up whatever happens. The exit code is the failed step's."""
    with make_place(load_settings()) as (state, run):
        env = {"RUNTA_STATE_DIR": str(state), "RUNTA_RUN_DIR": str(run), "RUNTA_LISTEN": "", "RUNTA_ENDPOINT": ""}
        demo = Demo(env=env)
        with demo.service(state / "serve.log", run / "runta.sock"):
            try:
                return demo.walk()
            finally:
                demo.clean()


if __name__ == "__main__":
    sys.exit(main())

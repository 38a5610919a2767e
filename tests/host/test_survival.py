"""What a checkpoint carries: memory, files, pipes, ptys, sockets, watches, links; over one generation and two."""

from __future__ import annotations

import json
import time

from runta import Runta
from tests.host.conftest import House
from tests.host.test_walk import wait_for

# A program that answers questions from a directory: each question file is a Python expression, evaluated in its memory.
ORACLE = r"""
import fcntl, json, mmap, os, pty, random, select, socket, sys, threading, time
exec(open('/tmp/setup.py').read())
open('/tmp/ready','w').write('1')
while True:
    for name in os.listdir('/tmp/q'):
        if name.startswith('.'): continue
        try:
            answer = {'ok': eval(open(f'/tmp/q/{name}').read())}
        except Exception as err:
            answer = {'error': f'{type(err).__name__}: {err}'}
        os.unlink(f'/tmp/q/{name}')
        open(f'/tmp/a.{name}','w').write(json.dumps(answer))
        os.rename(f'/tmp/a.{name}', f'/tmp/a/{name}')
    time.sleep(0.01)
"""


def plant(runtime, setup: str) -> None:
    """Start the oracle in a runtime, with `setup` run first."""
    runtime.exec("mkdir -p /tmp/q /tmp/a")
    runtime.files.write("/tmp/setup.py", setup.encode())
    runtime.files.write("/tmp/oracle.py", ORACLE.encode())
    assert runtime.exec("setsid python3 -S /tmp/oracle.py </dev/null >/tmp/oracle.log 2>&1 & sleep 0.01").exit_code == 0
    found = runtime.exec(
        "for i in $(seq 400); do [ -e /tmp/ready ] && exit 0; sleep 0.02; done; cat /tmp/oracle.log; exit 1"
    )
    assert found.exit_code == 0, found.stdout_text


def ask(runtime, expression: str):
    """The oracle's answer."""
    name = f"q{time.monotonic_ns()}"
    runtime.files.write(f"/tmp/q/.{name}", expression.encode())
    got = runtime.exec(
        f"mv /tmp/q/.{name} /tmp/q/{name}; for i in $(seq 500); do [ -e /tmp/a/{name} ] && cat /tmp/a/{name} && exit 0; sleep 0.01; done; "
        "cat /tmp/oracle.log; exit 1"
    )
    assert got.exit_code == 0, got.stdout_text
    answer = json.loads(got.stdout_text)
    assert "ok" in answer, answer
    return answer["ok"]


def test_memory_files_pipes_and_ptys_survive(bring_up) -> None:
    setup = (
        "secret = os.urandom(8).hex(); mine = os.getpid()\n"
        "log = open('/tmp/log', 'w+'); log.write('first\\n'); log.flush()\n"
        "r, w = os.pipe(); os.write(w, b'in the pipe')\n"
        "a, b = socket.socketpair(); a.send(b'in the socket')\n"
        "server = socket.create_server(('127.0.0.1', 4000)); c = socket.create_connection(('127.0.0.1', 4000)); s, _ = server.accept()\n"
        "threading.Thread(target=time.sleep, args=(9999,), daemon=True).start()\n"
    )
    seen = {}

    def before(source) -> None:
        plant(source, setup)
        seen["secret"], seen["pid"] = ask(source, "secret"), ask(source, "mine")

    runtime = bring_up(before)
    assert ask(runtime, "secret") == seen["secret"]
    assert ask(runtime, "os.getpid()") == seen["pid"]
    assert ask(runtime, "(log.write('second\\n'), log.flush(), open('/tmp/log').read())[2]") == "first\nsecond\n"
    assert ask(runtime, "os.read(r, 99).decode()") == "in the pipe"
    assert ask(runtime, "b.recv(99).decode()") == "in the socket"
    assert ask(runtime, "(c.send(b'over tcp'), s.recv(99).decode())[1]") == "over tcp"
    assert ask(runtime, "socket.create_connection(('127.0.0.1', 4000)) and 1") == 1
    assert ask(runtime, "threading.active_count()") == 2


def test_two_forks_never_draw_the_same_random_bytes(runta: Runta) -> None:
    source = runta.runtimes.create("dice")
    plant(
        source,
        "import ctypes\nlibc = ctypes.CDLL(None)\nbuf = ctypes.create_string_buffer(16)\nlibc.getrandom(buf, 16, 0)\n",
    )
    checkpoint = source.checkpoints.create(name="dice-ck")
    forks = [runta.runtimes.create(f"dice-{i}", checkpoint_id=checkpoint.id) for i in range(2)]
    drawn = [ask(fork, "(libc.getrandom(buf, 16, 0), buf.raw.hex())[1]") for fork in (*forks, source)]
    assert len(set(drawn)) == 3


def test_generations(runta: Runta) -> None:
    source = runta.runtimes.create("gen-0")
    plant(source, "memory = ['zero']\n")
    source.exec("echo zero > /root/file; mkdir /root/d; echo x > /root/d/x")
    first = source.checkpoints.create(name="gen-ck-0")
    child = runta.runtimes.create("gen-1", checkpoint_id=first.id)
    assert ask(child, "memory.append('one') or memory") == ["zero", "one"]
    child.exec("echo one >> /root/file; rm -r /root/d; mkdir /root/d; echo y > /root/d/y")
    second = child.checkpoints.create(name="gen-ck-1")
    child.delete()
    source.delete()
    grandchild = runta.runtimes.create("gen-2", checkpoint_id=second.id)
    assert ask(grandchild, "memory") == ["zero", "one"]
    assert grandchild.exec("cat /root/file; ls /root/d").stdout_text == "zero\none\ny\n"
    again = runta.runtimes.create("gen-1b", checkpoint_id=first.id)
    assert ask(again, "memory") == ["zero"]
    assert again.exec("cat /root/file; ls /root/d").stdout_text == "zero\nx\n"


def test_a_fork_may_do_to_a_layer_what_it_could_do_to_its_own_files(runta: Runta) -> None:
    source = runta.runtimes.create("layered")
    source.exec(
        "mkdir -p /srv/dir/sub; echo in > /srv/dir/sub/f; echo one > /srv/a; ln /srv/a /srv/b; echo map > /srv/map"
    )
    plant(
        source,
        "f = open('/srv/map', 'r+b'); shared = mmap.mmap(f.fileno(), 0); other = mmap.mmap(os.open('/srv/map', os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "open('/srv/l1', 'w').write('linked'); os.link('/srv/l1', '/srv/l2'); held = open('/srv/l1', 'r+'); os.unlink('/srv/l1')\n"
        "import ctypes; libc = ctypes.CDLL(None); watch = libc.inotify_init1(os.O_NONBLOCK); libc.inotify_add_watch(watch, b'/srv', 0x100)\n"
        "gone = open('/srv/gone', 'w+'); gone.write('ghost'); gone.flush(); os.unlink('/srv/gone')\n",
    )
    checkpoint = source.checkpoints.create(name="layered-ck")
    fork = runta.runtimes.create("layered-fork", checkpoint_id=checkpoint.id)
    assert fork.exec("mv /srv/dir /srv/moved && cat /srv/moved/sub/f").stdout_text == "in\n"
    assert fork.exec("echo two >> /srv/a; cat /srv/b; stat -c %h /srv/a").stdout_text == "one\ntwo\n2\n"
    assert ask(fork, "(shared.__setitem__(slice(0, 3), b'MAP'), other[:3].decode(), open('/srv/map').read())[1:]") == [
        "MAP",
        "MAP\n",
    ]
    assert ask(fork, "(held.seek(0, 2), held.write('+'), held.flush(), open('/srv/l2').read())[3]") == "linked+"
    assert ask(fork, "(gone.seek(0), gone.read())[1]") == "ghost"
    assert fork.exec("touch /srv/new").exit_code == 0
    assert ask(fork, "len(os.read(watch, 4096)) > 0") is True
    # The second generation: what was copied up through one name only must not come apart.
    second = fork.checkpoints.create(name="layered-ck-2")
    grandchild = runta.runtimes.create("layered-2", checkpoint_id=second.id)
    assert grandchild.exec(
        "cat /srv/b; cat /srv/moved/sub/f; cat /srv/l2; ls /srv/dir 2>&1 | tail -c 10"
    ).stdout_text.startswith("one\ntwo\nin\nlinked+")
    assert source.exec("cat /srv/b /srv/dir/sub/f").stdout_text == "one\nin\n"


def test_one_name_of_a_hard_link_written_in_a_fork_carries_the_other_into_its_checkpoint(runta: Runta) -> None:
    source = runta.runtimes.create("links")
    source.exec("mkdir /srv/far; echo one > /srv/a; ln /srv/a /srv/far/b")
    fork = runta.runtimes.create("links-1", checkpoint_id=source.checkpoints.create(name="links-ck").id)
    fork.exec("echo two >> /srv/a")
    again = runta.runtimes.create("links-2", checkpoint_id=fork.checkpoints.create(name="links-ck-2").id)
    assert (
        again.exec("cat /srv/far/b; echo three >> /srv/far/b; cat /srv/a").stdout_text == "one\ntwo\none\ntwo\nthree\n"
    )


def test_an_attached_exec_goes_on_across_a_checkpoint_complete(runta: Runta) -> None:
    runtime = runta.runtimes.create("talker")
    running = runtime.exec_detached(
        "for i in $(seq 1 3000); do echo line-$i; [ $((i % 10)) = 0 ] && sleep 0.002; done", timeout=120
    )
    for index in range(3):
        time.sleep(0.1)
        runtime.checkpoints.create(name=f"talk-{index}")
    result = running.result(timeout=120)
    assert result.exit_code == 0
    assert result.stdout_text.splitlines() == [f"line-{i}" for i in range(1, 3001)]


def test_stdin_survives_a_checkpoint(runta: Runta) -> None:
    runtime = runta.runtimes.create("eater")
    data = bytes(range(256)) * 20000
    running = runtime.exec_detached(
        "while head -c 65536 | grep -q . ; do sleep 0.01; done; echo done", stdin=data, timeout=120
    )
    counting = runtime.exec_detached("sha256sum", stdin=data, timeout=120)
    runtime.checkpoints.create(name="eat")
    import hashlib

    assert counting.result(timeout=120).stdout_text.split()[0] == hashlib.sha256(data).hexdigest()
    assert running.result(timeout=120).exit_code == 0


def test_a_checkpoint_outlives_its_source_and_the_service(house: House) -> None:
    with house.connect() as client:
        source = client.runtimes.create("mortal")
        source.exec("echo kept > /root/kept")
        checkpoint = source.checkpoints.create(name="immortal")
        source.delete()
    house.stop()
    house.start()
    with house.connect() as client:
        assert [found.display_name for found in client.checkpoints.list()] == ["immortal"]
        runtime = client.runtimes.create("reborn", checkpoint_id=checkpoint.id)
        assert runtime.exec("cat /root/kept").stdout_text == "kept\n"


def test_a_terminal_session_survives(house: House, bring_up) -> None:
    """A shell on a pty, with a variable of its own, is in the checkpoint; in a fork it waits for somebody to attach."""

    def before(source) -> None:
        started = house.cli(
            "exec",
            "-d",
            "-t",
            source.name,
            "--",
            "bash",
            "--norc",
            "-c",
            "trap 'echo still-here > /tmp/pty' USR1; tty > /tmp/tty; while :; do sleep 0.05; done",
        )
        assert started.returncode == 0
        wait_for(lambda: source.exec("cat /tmp/tty").stdout_text.strip())

    runtime = bring_up(before)
    assert runtime.exec("cat /tmp/tty").stdout_text.startswith("/dev/pts/")
    runtime.exec("pkill -USR1 -f still-here")
    wait_for(lambda: runtime.exec("cat /tmp/pty").stdout_text == "still-here\n")

"""Commands."""

from __future__ import annotations

import threading
import time

import pytest

from runta import ApiError


def test_text_and_words(box):
    assert box.exec("echo out; echo err >&2; exit 7").exit_code == 7
    result = box.exec(["printf", "%s|", "a b", "$HOME"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, b"a b|$HOME|", b"")
    assert not (result.stdout_truncated or result.stderr_truncated)
    assert 0 <= result.duration < 30


def test_environment_directory_and_input(box):
    result = box.exec("echo $WHO; pwd; cat", env={"WHO": "me and $you"}, cwd="/usr", stdin=b"in\0put")
    assert result.stdout == b"me and $you\n/usr\nin\0put"
    assert box.exec("pwd").stdout_text == "/root\n"
    assert box.exec(["id", "-u"]).stdout_text == "0\n"


def test_large_input_and_output(box):
    data = bytes(range(256)) * (5 << 12)
    assert box.exec("sha256sum; wc -c </dev/null", stdin=data).exit_code == 0
    echoed = box.exec(["cat"], stdin=data, max_output_bytes=8 << 20)
    assert echoed.stdout == data
    cut = box.exec("head -c 3000000 /dev/zero; head -c 100 /dev/zero >&2", max_output_bytes=1000)
    assert (len(cut.stdout), cut.stdout_truncated, len(cut.stderr), cut.stderr_truncated) == (1000, True, 100, False)


def test_time_runs_out(box):
    result = box.exec("echo begun; sleep 600", timeout=1)
    assert result.exit_code == 124
    assert result.stdout_text == "begun\n"
    assert "timed out" in result.stderr_text


def test_what_does_not_exist(client, box):
    assert box.exec("no-such-program").exit_code == 127
    assert box.exec(["no-such-program"]).exit_code == 127
    gone = client.runtimes.create()
    gone.delete()
    with pytest.raises(ApiError):
        gone.exec("true")


def test_environment_of_the_runtime_is_not_lost(box):
    assert "/usr/bin" in box.exec("echo $PATH").stdout_text


def test_background_of_a_command(box):
    box.exec(
        "setsid sh -c 'sleep 300' >/dev/null 2>&1 </dev/null & sleep 301 >/dev/null 2>&1 &"
        " until pgrep -f '^sleep 300'; do sleep 0.02; done"  # until then it has no session of its own
    )
    deadline = time.monotonic() + 20
    while box.exec("pgrep -fc '^sleep 301'").stdout_text.strip() != "0" and time.monotonic() < deadline:
        pass
    assert box.exec("pgrep -fc '^sleep 301'").stdout_text.strip() == "0"
    assert box.exec("pgrep -fc '^sleep 300'").stdout_text.strip() == "1"
    box.exec("pkill -f '^sleep 300'")


def test_detached(box):
    futures = [box.exec_detached(f"sleep 0.{number}; echo {number}") for number in range(4)]
    assert [future.result(timeout=60).stdout_text for future in futures] == ["0\n", "1\n", "2\n", "3\n"]


def test_command_lives_through_pause_and_checkpoint(client, box):
    results = []
    running = threading.Thread(
        target=lambda: results.append(box.exec("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.4; done"))
    )
    running.start()
    time.sleep(1.2)
    box.pause()
    time.sleep(0.3)
    box.resume()
    checkpoint = box.checkpoints.create()
    running.join(60)
    client.checkpoints.delete(checkpoint.id)
    assert [(one.exit_code, one.stdout_text.split()) for one in results] == [(0, list("12345678"))]

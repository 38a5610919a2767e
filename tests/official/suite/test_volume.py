"""A gibibyte in, and out again, without the service growing."""

from __future__ import annotations

import os
import threading

SIZE = 1 << 30
GROWTH = 96
"""MiB the service may need for its buffers."""


def rss(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_a_gibibyte_each_way(client, make, name, tmp_path):
    pid = int(os.environ["RUNTA_TEST_SERVICE"])
    box = make(name)
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(SIZE - 3)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    before, most, done = rss(pid), [0], threading.Event()

    def watch():
        while not done.wait(0.05):
            most[0] = max(most[0], rss(pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        box.files.upload(str(source), "/srv/large")
        assert box.exec("stat -c %s /srv/large; tail -c 3 /srv/large").stdout_text == f"{SIZE}\nend"
        source.unlink()
        box.files.download("/srv/large", str(tmp_path / "back"))
    finally:
        done.set()
        watching.join()
    back = tmp_path / "back"
    assert back.stat().st_size == SIZE
    with back.open("rb") as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"end"
    back.unlink()
    assert most[0] - before < GROWTH, f"the service grew from {before} to {most[0]} MiB"

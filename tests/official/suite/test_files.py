"""Files."""

from __future__ import annotations

import os

import pytest

from runta import ApiError, CommandError


def test_read_and_write(box):
    data = bytes(range(256))
    box.files.write("/tmp/a", data)
    assert box.files.read("/tmp/a") == data
    assert box.files.read("/tmp/a", max_bytes=7) == data[:7]
    box.files.write("relative", "text")
    assert box.files.read("/root/relative") == b"text"
    box.files.write("/tmp/run", "#!/bin/sh\necho ran\n", executable=True)
    assert box.exec(["/tmp/run"]).stdout_text == "ran\n"
    box.files.write("/tmp/run", "")
    assert box.files.read("/tmp/run") == b""


def test_what_is_not_there(box):
    with pytest.raises(ApiError) as missing:
        box.files.read("/tmp/none")
    assert (missing.value.status_code, missing.value.code) == (404, "not_found")
    with pytest.raises((ApiError, CommandError)):
        box.files.download("/tmp/none", "/tmp/never")


def test_more_than_one_answer_holds(box, tmp_path):
    data = os.urandom(3 << 20)
    box.files.write("/tmp/large", data)
    box.files.download("/tmp/large", str(tmp_path / "large"))
    assert (tmp_path / "large").read_bytes() == data


def test_upload_and_download_a_file(box, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 << 20))
    source.chmod(0o750)
    box.files.upload(str(source), "/srv/new/place")
    box.files.upload(str(source), "/srv/below/")
    assert box.exec("stat -c %a /srv/new/place; cmp /srv/new/place /srv/below/source").stdout_text == "750\n"
    box.files.download("/srv/new/place", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_upload_and_download_a_directory(box, tmp_path):
    source = tmp_path / "tree"
    (source / "sub/deeper").mkdir(parents=True)
    (source / "sub/deeper/name with\nnewline").write_text("odd")
    (source / "sub/link").symlink_to("deeper")
    (source / "empty").mkdir()
    box.files.upload(str(source), "/srv/tree")
    box.exec("echo more > /srv/tree/more")
    box.files.upload(str(source), "/srv/tree")
    assert box.files.read("/srv/tree/more") == b"more\n"
    box.files.download("/srv/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/deeper/name with\nnewline").read_text() == "odd"
    assert (tmp_path / "back/sub/link").readlink().name == "deeper"
    assert (tmp_path / "back/empty").is_dir()


def test_download_contents(box, tmp_path):
    box.exec("mkdir -p /srv/c/d; echo 1 > /srv/c/one; echo 2 > /srv/c/d/two")
    box.files.download_dir_contents("/srv/c", str(tmp_path / "all"))
    assert sorted(path.name for path in (tmp_path / "all").rglob("*")) == ["d", "one", "two"]
    box.files.download_dir_contents("/srv/c", str(tmp_path / "some"), paths=["d/two"])
    assert [path.name for path in (tmp_path / "some").rglob("*") if path.is_file()] == ["two"]

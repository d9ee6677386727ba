"""A file is written whole or not at all: with two writers, a full disk, and what killed ones left."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest

from hessian_lr import atomic
from hessian_lr.atomic import write_bytes
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.records import read_json, write_json, write_sealed

FORK = multiprocessing.get_context("fork")


def test_two_writers_of_one_file_leave_one_of_the_two_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = [bytes([n]) * 200_000 for n in (1, 2)]
    write_bytes(path, contents[0])

    def write_often(content: bytes) -> None:
        for _ in range(40):
            write_bytes(path, content)

    writers = [FORK.Process(target=write_often, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    left = tmp_path / ".a.json.0123.tmp"
    left.write_text("half of it")
    others = tmp_path / ".b.json.0123.tmp"
    others.write_text("another file's")
    living, handle = atomic._begin(tmp_path / "a.json")
    try:
        write_json(tmp_path / "a.json", {})
        assert not left.exists()
        assert living.exists() and others.exists()
    finally:
        os.close(handle)
    write_json(tmp_path / "a.json", {})
    assert sorted(os.listdir(tmp_path)) == [".b.json.0123.tmp", "a.json"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """64 KiB of disk, or where this process may not mount one, files of at most so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_with_its_room_and_keeps_what_was_there(small_disk: Path) -> None:
    path = small_disk / "deep" / "a.json"
    write_json(path, {"version": 1})
    with pytest.raises(
        HessianLRError, match=r"cannot write .*a\.json: .*; it takes 100,000 bytes, and "
    ) as e:
        write_bytes(path, b"x" * 100_000)
    assert "Make room and give the same command again: what it held before is still there" in str(e.value)
    assert read_json(path) == {"version": 1}
    assert os.listdir(path.parent) == ["a.json"]
    write_json(path, {"version": 2})
    assert read_json(path) == {"version": 2}
    with pytest.raises(HessianLRError, match=r"give the same command again$"):
        write_bytes(small_disk / "new.json", b"x" * 100_000)


def test_a_link_is_followed_and_a_device_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "a.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert read_json(tmp_path / "real" / "a.json") == {"a": 1}
    assert (tmp_path / "link.json").is_symlink()
    write_json("/dev/null", {})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    write_json(path, {})
    assert os.listdir(tmp_path) == [path.name]


def test_a_sealed_file_that_was_changed_is_refused_and_an_unsealed_one_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {"λ": 0.1, "list": [1e-300, None], "deep": {"er": 7}}
    write_sealed(path, values)
    assert read_json(path) == values
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(RequestError, match=r"a\.json is not as it was written: its checksum does not fit"):
        read_json(path)
    path.write_text(json.dumps(values))
    assert read_json(path) == values


@pytest.mark.parametrize("text", ["NaN", '{"a": [Infinity]}', "[" * 100_000])
def test_what_no_writer_here_writes_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RequestError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")

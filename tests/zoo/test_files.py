"""Opening files of others, and writing without following links."""

import json
import os
import socket
import stat

import pytest

from zoo import files
from zoo.errors import ZooError
from zoo.files import FileError


class OtherError(ZooError):
    pass


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    made = socket.socket(socket.AF_UNIX)
    made.bind(os.path.relpath(path))  # a socket's path has 107 bytes at most
    made.close()


IN_THE_PLACE = {
    "fifo": (fifo, "must be a file; found a FIFO"),
    "folder": (lambda path: path.mkdir(), "must be a file; found a folder"),
    "socket": (unix_socket, "must be a file; found a socket"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "a symbolic link to nowhere, which is not there"),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "must be a file; found a device"),
}


@pytest.mark.parametrize("kind", IN_THE_PLACE)
def test_what_stands_in_the_place_of_a_file_is_named(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = IN_THE_PLACE[kind]
    path = tmp_path / "x.json"
    make(path)
    for read in (files.open_file, files.check_file, files.present, files.read_json, files.sha256):
        with pytest.raises(FileError, match=rf"x\.json: {message}"):
            read(path)
    with pytest.raises(OtherError, match=message):
        files.read_text(path, error=OtherError)


def test_files_that_are_not_there(tmp_path):
    assert not files.present(tmp_path / "x")
    assert not files.present(tmp_path / "file" / "x")
    with pytest.raises(FileError, match=r"x: no such file"):
        files.open_file(tmp_path / "x")
    with pytest.raises(FileError, match="embedded null byte"):
        files.open_file("a\0b")
    with pytest.raises(FileError, match="File name too long"):
        files.open_file("a" * 5000)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "x").write_text("{}")
    (tmp_path / "x").chmod(0)
    with pytest.raises(FileError, match="Permission denied"):
        files.read_json(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, not JSON"),
        (b"{", "damaged, not JSON"),
        (b"[1]", "must be a JSON object; found a list"),
        (b"null", "must be a JSON object; found nothing"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged, not JSON"),
        (b'{"a": 1e999}', "1e999.* is too large"),
        (b"[" * 100_000, "damaged, not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 text: byte 7 is 0xff"),
    ],
)
def test_damaged_json(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message):
        files.read_json(path)


def test_too_large(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "x", most=5) == b"12345"
    with pytest.raises(FileError, match="too large: more than 4 bytes"):
        files.read_bytes(tmp_path / "x", most=4)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", "./x", "", "a\0", "..", None, 3, ["x"], "a\\x"])
def test_names_that_lead_out_of_a_folder(tmp_path, name):
    assert files.inside(tmp_path, name)


def test_names_inside_a_folder(tmp_path):
    (tmp_path / "here" / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "here" / "x").symlink_to(tmp_path / "outside" / "blob")  # as huggingface_hub keeps its files
    folder = tmp_path / "here"
    assert all(files.inside(folder, name) is None for name in ("a", "a/b", "new/b", "x", "..a", "a..b"))
    assert "is a symbolic link that leads out of it" in files.inside(folder, "linked/b")
    (tmp_path / "link_to_all").symlink_to(folder)
    assert files.inside(tmp_path / "link_to_all", "a/b") is None


def test_writing_replaces_a_link_and_never_follows_it(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "x.json"
    victim.write_text("precious")
    link.symlink_to(victim)
    (tmp_path / f".writing-{os.getpid()}-x.json").symlink_to(victim)
    files.write_text(link, "new")
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert link.read_text() == "new"
    assert stat.S_IMODE(link.stat().st_mode) == stat.S_IMODE(victim.stat().st_mode)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "folder", "text")

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_appending(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "log.txt"
    victim.write_text("precious\n")
    link.symlink_to(victim)
    with pytest.raises(FileError, match=r"log\.txt: a symbolic link to .*victim; nothing is written through a link"):
        files.open_to_append(link)
    link.unlink()
    os.link(victim, link)
    with files.open_text_to_append(link) as file:
        file.write("more\n")
    assert (victim.read_text(), link.read_text()) == ("precious\n", "precious\nmore\n")
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(FileError, match="found a FIFO"):
        files.open_to_append(link)


def test_folders_that_are_links_are_not_written_into(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path)
    with pytest.raises(FileError, match="nothing is written through a link"):
        files.make_folder(tmp_path / "x")
    (tmp_path / "y").write_text("")
    with pytest.raises(FileError, match="y: is no folder"):
        files.make_folder(tmp_path / "y")
    files.make_folder(tmp_path / "z")
    assert (tmp_path / "z").is_dir()


def test_a_checksum_shows_one_changed_character(tmp_path):
    path = tmp_path / "x.json"
    value = {"b": [1.5, None, "é"], "a": {10: 1, 9: (2, 3)}}
    files.write_sealed_json(path, value)
    assert files.read_json(path) == {"b": [1.5, None, "é"], "a": {"10": 1, "9": [2, 3]}}
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(FileError, match=r"x\.json: damaged, its checksum does not match; remove it"):
        files.read_json(path)


def test_a_file_with_the_longest_name_is_written_and_an_error_names_it(tmp_path):
    longest = tmp_path / ("é" * 125 + ".json")  # 255 bytes
    files.write_json(longest, {"x": 1})
    assert json.loads(longest.read_text()) == {"x": 1}
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="Is a directory") as refused:
        files.write_json(tmp_path / "taken", {})
    assert refused.value.filename == str(tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([longest.name, "taken"])

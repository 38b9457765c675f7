"""Where files come from: a folder that is named, a server of our own, and what is said where there is neither."""

import functools
import gc
import hashlib
import http.server
import io
import re
import tarfile
import threading
import warnings

import pytest

from dpm_ppl.datasets import cifar10, files, mnist, mnist_binary
from tests.dpm_ppl.datasets.conftest import write

NAME = "digits/some-file.gz"


def md5(content):
    return hashlib.md5(content).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def published(tmp_path):
    """A folder, and the address at which it is published."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
    # A download that is refused leaves its socket to the collector, which would complain in whatever test comes then.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def test_a_file_is_downloaded_once(cache, published):
    folder, url = published
    content = bytes(range(7)) * 5
    write(folder / "some-file.gz", content)
    for _ in range(2):
        path = files.find(NAME, url=f"{url}/some-file.gz", md5=md5(content))
        assert (path, path.read_bytes()) == (cache / NAME, content)
        (folder / "some-file.gz").unlink(missing_ok=True)


def test_an_archive_unpacks_to_its_folder(cache, published):
    folder, url = published
    with tarfile.open(folder / "batches.tar.gz", "w:gz") as archive:
        for name in ("first.bin", "second.bin"):
            member = tarfile.TarInfo(f"batches/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    given = {"url": f"{url}/batches.tar.gz", "md5": md5((folder / "batches.tar.gz").read_bytes()), "archive": True}
    assert files.find("batches/second.bin", **given).read_text() == "second.bin"
    (folder / "batches.tar.gz").unlink()
    assert files.find("batches/first.bin", **given).read_text() == "first.bin"
    with pytest.raises(FileNotFoundError, match=r"batches/third\.bin"):
        files.find("batches/third.bin", **given)


def test_another_checksum_is_refused_and_nothing_kept(cache, published):
    folder, url = published
    write(folder / "some-file.gz", b"other")
    with pytest.raises(ValueError, match=f"of md5 {md5(b'this')}; it is damaged, or another"):
        files.find(NAME, url=f"{url}/some-file.gz", md5=md5(b"this"))
    assert not (cache / NAME).exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/some-file.gz", None], ids=["no network", "refused"])
def test_a_refused_download_says_what_to_do(cache, published, address):
    """The file, the folder, the variable and the address; a server that does not have it refuses with 404."""
    url = address or f"{published[1]}/some-file.gz"
    with pytest.raises(FileNotFoundError) as refused:
        files.find(NAME, url=url, md5=md5(b""))
    assert all(part in str(refused.value) for part in (NAME, str(cache), url, "DPM_DATA"))


def test_a_named_folder_is_all_that_is_searched(named, published):
    folder, url = published
    write(folder / "some-file.gz", b"here")
    given = {"url": f"{url}/some-file.gz", "md5": md5(b"here")}
    with pytest.raises(FileNotFoundError) as missing:
        files.find(NAME, **given)
    assert all(part in str(missing.value) for part in (NAME, str(named), given["url"], "DPM_DATA"))
    plain = write(named / "digits/some-file", b"unpacked")
    assert files.find(NAME, **given) == plain
    packed = write(named / NAME, b"packed")
    assert files.find(NAME, **given) == packed


@pytest.mark.parametrize("load", [mnist, mnist_binary, cifar10])
def test_every_loader_names_what_is_missing(named, load):
    with pytest.raises(FileNotFoundError, match=rf"Expected \S+ in {re.escape(str(named))}, the folder that DPM_DATA"):
        load()


def test_a_checksum_is_of_the_content(tmp_path):
    path = write(tmp_path / "file", b"content")
    files.require_md5(path, b"content", md5(b"content"))
    with pytest.raises(ValueError, match=rf"file to hold .* md5 {md5(b'content')}; got {md5(b'contend')} \(7 bytes\)"):
        files.require_md5(path, b"contend", md5(b"content"))

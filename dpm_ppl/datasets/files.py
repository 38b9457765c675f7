"""Files of data: in the folder that DPM_DATA names, else downloaded into a cache, and compared with their checksums."""

import hashlib
import os
from pathlib import Path

VARIABLE = "DPM_DATA"


def folder() -> Path:
    """The folder that DPM_DATA names, else the cache that downloads go to; a data set has a folder of its own in it."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    import pooch  # which imports a whole HTTP client: only where it is needed

    return Path(pooch.os_cache("dpm_ppl"))


def find(name: str, *, url: str, md5: str, archive: bool = False) -> Path:
    """A file of a data set; where DPM_DATA is not set, it is downloaded once.

    Args:
        name: The file below the folder, such as "mnist/t10k-images-idx3-ubyte.gz"; of a name in .gz the file without
            will do.
        url: Where it is published.
        md5: Published checksum of what is at `url`.
        archive: Whether that is a tar archive which unpacks to the file's folder, and to others beside it.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: it is not in the folder that DPM_DATA names, or cannot be downloaded.
        ValueError: what came has another checksum.
    """
    there = folder()
    for candidate in dict.fromkeys((name, name.removesuffix(".gz"))):
        if (there / candidate).is_file():
            return there / candidate
    if os.environ.get(VARIABLE):
        raise FileNotFoundError(
            f"Expected {name} in {there}, the folder that {VARIABLE} names; there is none. Put it there (it is "
            f"published at {url}), or unset {VARIABLE} to have it downloaded."
        )
    _download(there, name, url=url, md5=md5, archive=archive)
    if not (there / name).is_file():
        raise FileNotFoundError(f"Expected {name} in the archive at {url}; there is none.")
    return there / name


def _download(there: Path, name: str, *, url: str, md5: str, archive: bool) -> None:
    import pooch

    target = there if archive else (there / name).parent
    try:
        pooch.retrieve(
            url,
            known_hash=f"md5:{md5}",
            fname=url.rpartition("/")[2],
            path=target,
            processor=pooch.Untar(extract_dir=".") if archive else None,
            progressbar=True,
        )
    except OSError as error:  # no network, a refusal, or a folder that cannot be written
        raise FileNotFoundError(
            f"Expected {name} in {there}, or a download from {url}, which failed: {error} Where there is no network, "
            f"put the file below a folder of your own, as {name}, and name that folder in {VARIABLE}."
        ) from error
    except ValueError as error:
        raise ValueError(f"Expected a download from {url} of md5 {md5}; it is damaged, or another: {error}") from error


def require_md5(path: Path, content: bytes, md5: str) -> None:
    """Compares content, that of a file or what it unpacks to, with a published checksum.

    Raises:
        ValueError: it is another; the file and both checksums are named.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(
            f"Expected {path} to hold what has the published md5 {md5}; got {found} ({len(content):,} bytes). It is "
            "damaged, or another file: delete it and get it again."
        )

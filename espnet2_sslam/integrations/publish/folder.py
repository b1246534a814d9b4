"""The folder that is looked at and then uploaded: written whole, checked before use."""

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import yaml

from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.integrations.pack import pack_model
from espnet2_sslam.integrations.publish.card import PACKED_FILE, write_card
from espnet2_sslam.integrations.publish.facts import Facts
from espnet2_sslam.integrations.publish.records import without_machine
from espnet2_sslam.store import sha256, write_text

CARD_FILE = "README.md"
CHECKSUMS_FILE = "checksums.txt"
CHECKSUM = re.compile(r"([0-9a-f]{64})  (\S.*)")
MODEL_LINE = re.compile(r'^MODEL = ".*$', re.MULTILINE)


def write_folder(facts: Facts, folder: Path, *, overwrite: bool = False) -> Path:
    """Write model, packed model, configurations, card and hashes.

    The same facts give the same bytes. A folder that was written before is replaced
    once the new one is complete.

    Args:
        facts: What is published.
        folder: Where to.
        overwrite: Replace an earlier folder although it was changed by hand.

    Raises:
        ValueError: The folder holds something else, or was changed by hand.
        OSError: It cannot be written; an earlier folder is left as it was.
    """
    folder = Path(folder)
    _check_target(folder, facts, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        _fill(partial, facts)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_folder(folder: Path, model: str) -> dict[str, Path | bytes]:
    """Check a folder and return what is uploaded of it: files, or their content.

    README.md may have been edited and files may have been added; the model itself must
    be as it was written. The uploaded card names the model as it is found there, and
    the uploaded checksums are those of what is uploaded. The folder is left as it is.

    Args:
        folder: As `write_folder` has written it.
        model: user/name, for the code in the card.

    Raises:
        ValueError: Not such a folder; files that are missing or changed.
    """
    folder = Path(folder)
    written = read_checksums(folder)
    found = {name: sha256(folder / name) for name in _files(folder)}
    missing = sorted(set(written) - set(found))
    changed = sorted(
        name
        for name in set(written) & set(found)
        if name != CARD_FILE and written[name] != found[name]
    )
    for what, names in (("missing", missing), ("changed", changed)):
        if names:
            raise ValueError(
                f"{folder}: {', '.join(names)} {what} since it was written: write it "
                "again with `sslam publish MODEL --output`"
            )
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    card = MODEL_LINE.sub(lambda _: f'MODEL = "{model}"', text, count=1).encode()
    found[CARD_FILE] = hashlib.sha256(card).hexdigest()
    files: dict[str, Path | bytes] = {name: folder / name for name in found}
    return {**files, CARD_FILE: card, CHECKSUMS_FILE: _checksums(found).encode()}


def is_published(folder: Path) -> bool:
    """Whether this command has written the folder."""
    return (folder / CHECKSUMS_FILE).is_file() and (folder / CARD_FILE).is_file()


def read_checksums(folder: Path) -> dict[str, str]:
    """The content of checksums.txt.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    if not is_published(folder):
        raise ValueError(
            f"{folder} was not written by `sslam publish`: it lacks {CARD_FILE} or "
            f"{CHECKSUMS_FILE}"
        )
    lines = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8").splitlines()
    found = [CHECKSUM.fullmatch(line) for line in lines]
    if not found or None in found:
        raise ValueError(
            f"{folder / CHECKSUMS_FILE} is damaged: write the folder again"
        )
    return {line[2]: line[1] for line in found}


def _check_target(folder: Path, facts: Facts, overwrite: bool) -> None:
    """Refuse to replace what somebody may want to keep."""
    if folder.resolve() in (facts.source.weights.resolve().parent, Path.cwd()):
        raise ValueError(f"--output {folder} is the model's own folder: name another")
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file: name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    written = read_checksums(folder)
    now = {name: sha256(folder / name) for name in _files(folder)}
    edited = sorted(n for n in {*written, *now} if written.get(n) != now.get(n))
    if edited and not overwrite:
        raise ValueError(
            f"{folder} was changed by hand ({', '.join(edited)}): upload it as it is "
            f"with `sslam publish {folder} --hf_repo user/name`, or replace it with "
            "--overwrite"
        )


def _fill(folder: Path, facts: Facts) -> None:
    """Write all files; the card last, as it holds the hashes of the others."""
    save_model(facts.source.model, folder, facts.source.origin)
    pack_model(facts.source.model, folder / PACKED_FILE, timestamp=False)
    for number, training in enumerate(facts.lineage.trainings):
        kind = "" if number == 0 else f"_{training.kind.replace(' ', '')}"
        # Two trainings of one kind behind each other: the older one gets a number.
        path = folder / f"config{kind}.yaml"
        path = path if not path.exists() else folder / f"config{kind}_{number}.yaml"
        write_text(path, _shown_config(training.config))
    hashes = {name: sha256(folder / name) for name in _files(folder)}
    write_text(folder / CARD_FILE, write_card(facts, hashes))
    hashes[CARD_FILE] = sha256(folder / CARD_FILE)
    write_text(folder / CHECKSUMS_FILE, _checksums(hashes))
    for name in _files(folder):
        (folder / name).chmod(0o666 & ~_umask())


def _shown_config(config: dict) -> str:
    """A training's config.yaml without the folders of the machine that it ran on."""

    def shown(value):
        if isinstance(value, dict):
            return {key: shown(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [shown(item) for item in value]
        return without_machine(value) if isinstance(value, str) else value

    return yaml.safe_dump(shown(config), allow_unicode=True, sort_keys=False)


def _files(folder: Path) -> list[str]:
    """Names of all files but checksums.txt and hidden ones, sorted."""
    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    shown = (p.as_posix() for p in names if not any(x[0] == "." for x in p.parts))
    return sorted(name for name in shown if name != CHECKSUMS_FILE)


def _checksums(hashes: dict[str, str]) -> str:
    """The content of checksums.txt, as `sha256sum` writes and checks it."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

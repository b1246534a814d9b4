"""Mutated inputs through every reader of things from outside.

    python -m tests.fuzz --inputs 10000 [--seed 0] [--kind wav]

Half of the changes know the format: values of JSON and YAML, the header of safetensors,
tensors and members of torch's files, members of archives, headers of Kaldi's matrices.
An input may be read or refused by a ValueError or an OSError of one line. Anything else
is a fault: a traceback of another kind, code that is run, a file outside the target,
more than 2 GiB, more than 20 s.
"""

import argparse
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import kaldiio
import numpy as np
import soundfile
import torch
import yaml

from espnet2_sslam.audio import collect_files, read_blocks
from espnet2_sslam.checkpoint import load_model, read_pickle, save_model
from espnet2_sslam.checkpoint.layouts import plain
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.corpus import class_names, read_class_names, read_corpus
from espnet2_sslam.corpus.tables import merged, read_annotations
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.tasks import ClipDataset
from espnet2_sslam.tasks.trainer import load_checkpoint
from espnet2_sslam.unpack import unpack

GOLDEN = Path(__file__).parent / "golden"
MEMORY = 2 << 30
SECONDS = 20
NUMBERS = (
    b"-1",
    b"0",
    b"1",
    b"65535",
    b"99999999999",
    b"1e308",
    b"nan",
    b"null",
    b'""',
)
WORDS = (b"|touch RAN", b"touch RAN |", b"../../RAN", b"/dev/zero", b"\0", b"\xff\xfe")


class Kind(NamedTuple):
    """Files of one kind of input, those to mutate, and what reads them."""

    files: dict[str, bytes]
    mutable: tuple[str, ...]
    read: Callable[[Path], object]


class Evil:
    """What runs a command when it is unpickled without care."""

    def __reduce__(self):
        return os.system, ("touch RAN",)


def audio_kinds() -> dict[str, Kind]:
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)

    def read(folder: Path) -> None:
        [path] = folder.iterdir()
        for _ in read_blocks(path):
            pass

    kinds = {}
    for form in "wav flac ogg mp3 aiff au caf w64 rf64".split():
        file = io.BytesIO()
        soundfile.write(file, wave, 22050, format=form.upper())
        kinds[form] = Kind({f"a.{form}": file.getvalue()}, (f"a.{form}",), read)
    with contextlib.suppress(ImportError):
        import av

        for form, codec, suffix in (
            ("ipod", "aac", "m4a"),
            ("webm", "libopus", "webm"),
            ("adts", "aac", "aac"),
        ):
            file = io.BytesIO()
            with av.open(file, "w", format=form) as container:
                stream = container.add_stream(codec, rate=48000, layout="mono")
                frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
                frame.sample_rate = 48000
                fifo = av.AudioFifo()
                to_codec = av.AudioResampler(stream.format.name, "mono", 48000)
                for part in to_codec.resample(frame):
                    fifo.write(part)
                size = stream.codec_context.frame_size or 960
                while (part := fifo.read(size, partial=True)) is not None:
                    container.mux(stream.encode(part))
                container.mux(stream.encode(None))
            name = f"a.{suffix}"
            kinds[suffix] = Kind({name: file.getvalue()}, (name,), read)
    return kinds


def table_kinds() -> dict[str, Kind]:
    csv = b'path,label,split,start,end\na.wav,"dog, cat",train,0,1.5\nb.wav,,val,,\n'
    events = b"0.5\t1.5\tdog\n2.0\t3.0\tBark, yip\n"
    raven = b"Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\n1\t0.5\t2\tdog\n"
    lists = {
        "toy/train/wav.scp": b"a x.wav\nb y z.wav\nr long.wav\n",
        "toy/train/text": b"a dog\nb cat dog\nr\n",
        "toy/train/utt2spk": b"a a\nb s\nr r\n",
        "toy/train/segments": b"a a 0 1.5\nb b 0.25 -1\nr r 3 4\n",
        "toy/classes.txt": b"dog\ncat\n",
        "toy/label_names.tsv": b"dog\tDog\ncat\tCat, the\n",
        "downstream.txt": b"toy multi_label toy/train toy/train toy/train\n",
    }

    def tree(folder: Path) -> None:
        for _ in read_corpus(folder):
            pass
        class_names(folder / "toy/classes.txt")

    def table(folder: Path) -> None:
        [path] = folder.iterdir()
        merged(read_annotations(path, recording="x.wav"))

    def labels(folder: Path) -> None:
        read_class_names(folder / "labels", ["0", "1"])

    named = b'index,mid,display_name\n0,/m/0,"Child, the"\n1,/m/1,Dog\n'
    files = {
        "labels": ({"labels": named}, labels),
        "csv": ({"t.csv": csv}, table),
        "tsv": ({"t.tsv": csv.replace(b",", b"\t")}, table),
        "events": ({"t.txt": events}, table),
        "raven": ({"t.txt": raven}, table),
        "lists": (lists, tree),
        "scp": (
            {"t.scp": b"a x.wav\nb y.wav\n"},
            lambda folder: collect_files([], [str(folder / "t.scp")]),
        ),
    }
    return {name: Kind(of, tuple(of), read) for name, (of, read) in files.items()}


def archive_kinds() -> dict[str, Kind]:
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/b.txt", "text " * 100)
        file.writestr("c.bin", bytes(5000))
    with tarfile.open(fileobj=tarred, mode="w:gz") as file:
        for name in ("a/b.txt", "c.bin"):
            info = tarfile.TarInfo(name)
            info.size = 1000
            file.addfile(info, io.BytesIO(bytes(1000)))

    def read(folder: Path) -> None:
        [path] = folder.iterdir()
        unpack(path, folder / "target")

    return {
        name: Kind({f"a.{name}": data.getvalue()}, (f"a.{name}",), read)
        for name, data in (("zip", packed), ("tar.gz", tarred))
    }


def checkpoint_kinds(place: Path) -> dict[str, Kind]:
    def read(folder: Path) -> None:
        load_model(
            folder if len(list(folder.iterdir())) > 1 else next(folder.iterdir())
        )

    encoder = SSLAMEncoder(embed_dim=16, depth=1, num_heads=2, max_frames=64)
    model = SSLAMClassifier(encoder, ["dog", "cat"])
    save_model(model, place / "ours")
    ours = {file.name: file.read_bytes() for file in (place / "ours").iterdir()}
    saved, resumed, zipped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    tensors, packed = io.BytesIO(), io.BytesIO()
    evil = {"model": {"a": Evil()}, "cfg": {"model": Evil()}}
    torch.save(evil, zipped)
    torch.save(model.state_dict(), saved)
    reporter = {"stats": {1: {"train": {"loss": 1.0}}}, "epoch": 1}
    states = {"model": model.state_dict(), "reporter": reporter, "optimizers": [{}]}
    torch.save(states, resumed)
    conf = {"embed_dim": 16, "depth": 1, "num_heads": 2, "max_frames": 64}
    config = {
        "input_size": 1,
        "encoder_conf": conf,
        "model_conf": {},
        "class_list": ["dog", "cat"],
    }
    fairseq = lzma.decompress((GOLDEN / "tiny_fairseq_finetuned.pt.xz").read_bytes())
    (place / "a.pt").write_bytes(fairseq)
    training = {
        "config.yaml": yaml.safe_dump(config).encode(),
        "latest.pth": saved.getvalue(),
    }
    content = read_pickle(place / "a.pt")
    parts = {name: plain(content[name]) for name in ("cfg", "task_state")}
    torch.save({"model": dict(content["model"]), **parts}, tensors)
    meta = {"files": {"model_file": "latest.pth"}, "yaml_files": {}}
    with zipfile.ZipFile(packed, "w") as file:
        for name, data in {"meta.yaml": yaml.safe_dump(meta), **training}.items():
            file.writestr(name, data)

    def read_packed(folder: Path) -> None:
        load_model(folder / "a.zip", cache_dir=folder / "cache")

    kinds = {
        "fairseq": Kind({"a.pt": fairseq}, ("a.pt",), read),
        "pickle": Kind({"a.pt": pickle.dumps(evil)}, ("a.pt",), read),
        "folder": Kind(ours, ("config.json",), read),
        "weights": Kind(ours, ("model.safetensors",), read),
        "tensors": Kind({"a.pt": tensors.getvalue()}, ("a.pt",), read),
        "packed": Kind({"a.zip": packed.getvalue()}, ("a.zip",), read_packed),
        "training": Kind(
            training, ("latest.pth",), lambda folder: load_model(folder / "latest.pth")
        ),
        "yaml": Kind(
            training, ("config.yaml",), lambda folder: load_model(folder / "latest.pth")
        ),
        "resume": Kind(
            {"checkpoint.pth": resumed.getvalue()}, ("checkpoint.pth",), load_checkpoint
        ),
        "evil": Kind({"a.pt": zipped.getvalue()}, ("a.pt",), read),
        "evil resume": Kind(
            {"checkpoint.pth": zipped.getvalue()}, ("checkpoint.pth",), load_checkpoint
        ),
    }
    with contextlib.suppress(ImportError):
        from espnet2_sslam.integrations.huggingface import SSLAMForAudioClassification

        def read_hub(folder: Path) -> None:
            SSLAMForAudioClassification.from_pretrained(folder)

        files = ("config.json", "model.safetensors")
        kinds["hugging face"] = Kind(ours, files, read_hub)
    return kinds


def ark_kinds(place: Path) -> dict[str, Kind]:
    feats = np.random.default_rng(0).standard_normal((30, 128)).astype(np.float32)
    kaldiio.save_ark(str(place / "f.ark"), {"a": feats}, scp=str(place / "f.scp"))

    def read(folder: Path) -> None:
        from espnet2_sslam.tasks.data import refuse_commands

        os.chdir(folder)
        refuse_commands("feats.scp")
        data = ClipDataset([("feats.scp", "speech", "kaldi_ark")])
        for key in list(data.loader_dict["speech"].keys()):
            data[key]

    files = {"feats.scp": b"a f.ark:2\n", "f.ark": (place / "f.ark").read_bytes()}
    return {"ark": Kind(files, ("feats.scp", "f.ark"), read)}


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, cuts, copies, numbers, words, lines."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            changed = bytearray(b"x")
        # The beginning, where headers are, as often as all the rest.
        end = min(len(changed), 200) if draw.random() < 0.5 else len(changed)
        at = draw.randrange(end)
        how = draw.randrange(8)
        if how == 0:
            changed[at] = draw.randrange(256)
        elif how == 1:
            changed[at : at + 4] = struct.pack(
                "<I", draw.choice([0, 1, 2**31, 2**32 - 1])
            )
        elif how == 2:
            del changed[at : at + draw.choice([1, 10, 10000])]
        elif how == 3:
            changed[at:at] = changed[at : at + draw.choice([1, 50, 500])]
        elif how == 4:
            changed[at:at] = draw.choice(WORDS)
        elif how == 5:
            text = bytes(changed)
            digits = [i for i, byte in enumerate(text[:5000]) if chr(byte).isdigit()]
            if digits:
                i = draw.choice(digits)
                changed[i : i + 1] = draw.choice(NUMBERS)
        elif how == 6:
            lines = bytes(changed).split(b"\n")
            draw.shuffle(lines)
            changed = bytearray(b"\n".join(lines[: draw.randint(1, len(lines))]))
        else:
            changed = changed[:at]
    return bytes(changed)


VALUES = (
    *(None, -1, 0, 1, 3, 65536, 10**9, 10**30, -(10**18), 0.5, 1e308, -0.0, True),
    *(
        "x",
        "",
        "../../RAN",
        "nan",
        [],
        {},
        [1],
        [[]],
        {"x": {}},
        ["x"] * 1000,
        "9" * 5000,
    ),
)
LAUGHS = "".join(
    f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
YAMLS = (
    "x: !!python/object/apply:os.system ['touch RAN']\n",
    "encoder_conf: !!python/object/new:os.system ['touch RAN']\n",
    f"l0: &l0 [x]\n{LAUGHS}encoder_conf: *l29\n",
    f"l0: &l0 [x]\n{LAUGHS}encoder_conf: {{embed_dim: *l29}}\nclass_list: *l29\n",
    f"l0: &l0 [x]\n{LAUGHS}encoder_conf: {{}}\nmodel_conf: {{task: *l29}}\n",
    "encoder_conf: &a {embed_dim: *a}\n",
    "encoder_conf: {}\nclass_list: &a [*a]\n",
    "encoder_conf: {? {a: b} : c}\n",
    "encoder_conf: " + "[" * 20_000,
    "encoder_conf: {embed_dim: 0x" + "f" * 9_000 + "}\n",
    "encoder_conf: {embed_dim: 2001-01-01, depth: .inf, num_heads: 1:30}\n",
    "a: 1\n---\nb: 2\n",
)


def changed(content: object, draw: random.Random) -> object:
    """One or two values of nested dictionaries become others or are lost."""
    for _ in range(draw.randint(1, 2)):
        node = content
        while isinstance(node, dict) and node:
            key = draw.choice(sorted(node, key=str))
            if isinstance(node[key], dict) and node[key] and draw.random() < 0.7:
                node = node[key]
                continue
            if draw.random() < 0.2:
                del node[key]
            else:
                node[key] = draw.choice(VALUES)
            break
    return content


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """JSON with another value, or far too deep."""
    if draw.random() < 0.03:
        return data[:-3] + b', "deep": ' + b"[" * 100_000
    return json.dumps(changed(json.loads(data), draw)).encode()


def mutate_yaml(data: bytes, draw: random.Random) -> bytes:
    """YAML with another value, or with aliases, tags and depths that are traps."""
    if draw.random() < 0.3:
        return draw.choice(("", data.decode())).encode() + draw.choice(YAMLS).encode()
    return yaml.safe_dump(changed(yaml.safe_load(data), draw)).encode()


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Another value in the header: types, shapes, offsets, names."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    entry = header[draw.choice(sorted(header))]
    key, value = draw.choice(
        (
            ("shape", [draw.choice((0, -1, 2**31, 2**62, 1e9, "x")), 3]),
            ("shape", [1] * draw.choice((0, 5, 5_000))),
            ("dtype", draw.choice(("F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", 3))),
            ("data_offsets", [0, draw.choice((0, 4, 2**40, 2**63))]),
            ("data_offsets", [draw.choice((-1, 2**40)), 4]),
        )
    )
    if draw.random() < 0.3:
        header = changed(header, draw)
    else:
        entry[key] = value
    if draw.random() < 0.1:
        body = body[: draw.randrange(len(body))]
    if draw.random() < 0.2:
        body = bytes(draw.choice((0x7F, 0xFF, 0xC0)) for _ in range(len(body)))
    text = json.dumps(header).encode()
    size = len(text) if draw.random() < 0.9 else draw.choice((0, 2**31, 2**63, 10**8))
    return size.to_bytes(8, "little") + text + body


def strange_tensor(tensor: torch.Tensor, draw: random.Random) -> object:
    """What a file may hold in the place of a tensor."""
    number = torch.zeros(())
    return draw.choice(
        (
            lambda: number.expand(10**5, 10**6),  # claims 400 GB
            lambda: torch.as_strided(torch.zeros(9), (10**4, 10**5), (0, 0)),
            lambda: torch.full_like(tensor, float(draw.choice(("nan", "inf")))),
            lambda: tensor.double() * 1e300,
            lambda: tensor.to(draw.choice((torch.int64, torch.bool, torch.complex64))),
            lambda: tensor.to_sparse() if tensor.dim() else tensor,
            lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
            lambda: tensor.to("meta"),
            lambda: tensor.flatten()[: draw.choice((0, 1))],
            lambda: tensor[None],
            lambda: torch.nn.Parameter(tensor),
            lambda: draw.choice(VALUES),
        )
    )()


def mutate_torch(data: bytes, draw: random.Random) -> bytes:
    """A file of torch.save with a strange tensor or name, or with a changed member."""
    if not data.startswith(b"PK") or draw.random() < 0.4:
        return mutate_zip(data, draw) if data.startswith(b"PK") else mutate(data, draw)
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError:  # the evil ones
        return mutate_zip(data, draw)
    state = content.get("model", content) if isinstance(content, dict) else {}
    names = [key for key, value in state.items() if isinstance(value, torch.Tensor)]
    if names and draw.random() < 0.8:
        name = draw.choice(names)
        state[name] = strange_tensor(state[name], draw)
    elif names:
        name = draw.choice(names)
        key = draw.choice((None, 3, "", "module.x", "a" * 10**5, ("x",), f"{name}.0"))
        state[key] = state.pop(name)
    if "cfg" in content:
        changed(content["cfg"], draw)
    file = io.BytesIO()
    try:
        torch.save(content, file)
    except (NotImplementedError, RuntimeError):  # no such tensor can be written
        return mutate_zip(data, draw)
    return file.getvalue()


def mutate_zip(data: bytes, draw: random.Random) -> bytes:
    """One member is changed, renamed, doubled or blown up; all sums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(item.filename, old.read(item)) for item in old.infolist()]
    i, mode = draw.randrange(len(members)), 0o100644
    if draw.random() < 0.5:  # the pickle, or whatever text comes first
        i = next((k for k, (n, _) in enumerate(members) if n.endswith(".pkl")), i)
    name, content = members[i]
    how = draw.randrange(7)
    if how < 4:
        content = mutate(content, draw)
    elif how == 4:
        evil = ("../../RAN", "/tmp/RAN", "..\\RAN", "a/../../RAN", "C:RAN", "x\0RAN")
        name = draw.choice((*evil, "x" * 300, "caf\u00e9", "a//b", "a/b.txt/c"))
    elif how == 5:
        mode, content = draw.choice((0o120777, 0o020666, 0o010666)), b"../../RAN"
    else:
        members.append((name, content))
    members[i] = name, content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice((0, 8))) as new:
        for number, (name, content) in enumerate(members):
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode if number == i else 0o100644) << 16
            new.writestr(info, content)
        if how == 6 and draw.random() < 0.5:
            new.writestr("bomb", bytes(300 << 20), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def mutate_tar(data: bytes, draw: random.Random) -> bytes:
    """Members of all kinds, or changed bytes below the compression."""
    if draw.random() < 0.5:
        return gzip.compress(mutate(gzip.decompress(data), draw), 1)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as new:
        for name in draw.sample(("a", "a/b", "../RAN", "/tmp/RAN", "./x", "", "."), 3):
            info = tarfile.TarInfo(name)
            kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE)
            info.type = draw.choice((*kinds, tarfile.CHRTYPE, tarfile.FIFOTYPE))
            info.linkname = draw.choice(("../RAN", "/etc/passwd", "a", ""))
            info.mode, info.uid = draw.choice((0o644, 0, 0o7777)), draw.choice(
                (0, 10**6)
            )
            info.size = 4 if info.type == tarfile.REGTYPE else 0
            new.addfile(info, io.BytesIO(b"text"))
    return file.getvalue()


def mutate_ark(data: bytes, draw: random.Random) -> bytes:
    """A Kaldi matrix of another kind or size, or with other values."""
    sizes = (0, 1, 30, 128, -1, 2**31 - 1, 2**20)
    rows, columns = (draw.choice(sizes) for _ in range(2))
    kind = draw.choice((b"FM ", b"DM ", b"FV ", b"CM ", b"CM2 ", b"AUDIO", b"XX "))
    head = b"\0B" + kind + struct.pack("<bibi", 4, rows, 4, columns)
    body = draw.choice(
        (data[17:], struct.pack("<f", draw.choice((1e38, float("nan")))))
    )
    return b"a " + head + body * draw.choice((1, 200))


# Changes that know the format, by the end of the name.
STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutate_json,
    ".yaml": mutate_yaml,
    ".safetensors": mutate_safetensors,
    ".pt": mutate_torch,
    ".pth": mutate_torch,
    ".zip": mutate_zip,
    ".tar.gz": mutate_tar,
    ".ark": mutate_ark,
}


def run(
    inputs: int, seed: int = 0, only: str | None = None
) -> tuple[Counter, list[str]]:
    """Counts of outcomes by kind, and the faults."""
    counts: Counter = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        kinds = {
            **audio_kinds(),
            **table_kinds(),
            **archive_kinds(),
            **checkpoint_kinds(place),
            **ark_kinds(place),
        }
        names = [only] if only else sorted(kinds)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        limits = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS, (now * resource.getpagesize() + MEMORY, limits[1])
        )
        here = Path.cwd()
        try:
            for number in range(inputs):
                kind = names[number % len(names)]
                outcome, text = _try(kinds[kind], place, f"{seed} {number}")
                counts[kind, outcome] += 1
                if outcome == "fault":
                    faults.append(f"{kind}, input {number}: {text}")
        finally:
            os.chdir(here)
            resource.setrlimit(resource.RLIMIT_AS, limits)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - start
        counts["memory", "MiB above start"] = peak >> 20
        if peak > MEMORY:
            faults.append(f"{peak >> 20} MiB above the start")
    return counts, faults


def _try(kind: Kind, place: Path, seed: str) -> tuple[str, str]:
    """Read one mutated input; what came of it, and the fault's text."""
    draw = random.Random(seed)
    folder = place / "box" / "input"
    for path, data in kind.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    if draw.random() < 0.97 or "pickle" not in kind.mutable[0]:
        path = draw.choice(kind.mutable)
        suffixes = [suffix for suffix in STRUCTURED if path.endswith(suffix)]
        structured = bool(suffixes) and draw.random() < 0.6
        change = STRUCTURED[suffixes[0]] if structured else mutate
        (folder / path).write_bytes(change(kind.files[path], draw))
    os.chdir(folder)
    before = set(place.iterdir()) | set((place / "box").iterdir())

    def late(*_) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            kind.read(folder)
        outcome, text = "read", ""
    except TimeoutError as error:
        outcome, text = "fault", str(error)
    except (ValueError, OSError) as error:
        outcome, text = "refused", str(error)
        if "\n" in text.strip() and "hugging" not in str(kind.read):
            outcome, text = "fault", f"more than one line: {text!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "espnet2_sslam" in f.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        outcome, text = "fault", f"{type(error).__name__}: {error} ({where})"[:300]
    finally:
        signal.alarm(0)
    if list(place.rglob("RAN")) or Path("RAN").exists():
        outcome, text = "fault", "code was run, or a file written elsewhere"
        for path in place.rglob("RAN"):
            path.unlink()
    if set(place.iterdir()) | set((place / "box").iterdir()) != before:
        outcome, text = "fault", "a file outside the target"
    os.chdir(place)
    shutil.rmtree(place / "box")
    return outcome, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind")
    args = parser.parse_args()
    counts, faults = run(args.inputs, args.seed, args.kind)
    print(f"peak memory: {counts.pop(('memory', 'MiB above start'))} MiB above start")
    for kind in sorted({kind for kind, _ in counts}):
        of = {name: counts[kind, name] for name in ("read", "refused", "fault")}
        print(f"{kind:14s}", "  ".join(f"{name} {n:5d}" for name, n in of.items()))
    print(f"{args.inputs} inputs, {len(faults)} faults")
    for text in faults[:200]:
        print(" ", text)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

"""The blocks of a page of documentation, and a folder in which they run."""

import re
import shlex
from pathlib import Path

import numpy as np
import soundfile

from espnet2_sslam.bin import sslam
from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import small_classifier

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"^```(?P<kind>python|sh)\n(?P<code>.*?)^```$|^    (?P<command>sslam [^\n]*)$",
    re.MULTILINE | re.DOTALL,
)


def make_user_folder(folder):
    """The files that the pages name: clips, a recording, a small classifier."""
    rng = np.random.default_rng(0)
    for name in ("clip.wav", "other.flac", "recordings/street.wav"):
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 24_000).astype("float32"), 16_000)
    save_model(small_classifier(), Path(folder, "models/sslam"))


def read_blocks(page):
    """What a page shows, in its order: ("python", code) and ("sslam", command)."""
    text = (ROOT / page).read_text("utf-8")
    blocks = []
    for block in BLOCK.finditer(text):
        if block["kind"] == "python":
            blocks.append(("python", block["code"]))
            continue
        lines = (block["command"] or block["code"].replace("\\\n", " ")).splitlines()
        blocks += [("sslam", line) for line in lines if line.startswith("sslam ")]
    return blocks


def run_blocks(blocks):
    """Run blocks one after the other in the working directory; Python's names stay.

    Returns the names that the Python blocks have made.
    """
    names = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "page", "exec"), names)
        else:
            sslam.main(shlex.split(text)[1:])
    return names

"""The core where nothing but its own requirements can be imported."""

import subprocess
import sys

import pytest

BLOCKED = (
    "espnet2 espnet s3prl transformers matplotlib tensorboard sklearn scipy pandas "
    "jinja2 kaldiio av torchaudio"
).split()
BLOCK = f"""
import sys
from importlib.machinery import ModuleSpec

class Blocked:
    # torch only asks whether some packages are there: the import itself must fail
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            return ModuleSpec(name, self)

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)

    def exec_module(self, module): ...

sys.meta_path.insert(0, Blocked())
"""
PRETRAIN = """
import torch
from espnet2_sslam import SSLAMEncoder, SSLAMPretrainModel
from espnet2_sslam.checkpoint import save_model

encoder = SSLAMEncoder(embed_dim=24, depth=2, num_heads=2, max_frames=320)
model = SSLAMPretrainModel(
    encoder, clip_frames=160, clone_batch=2, mixture=True,
    decoder_conf={"num_layers": 1, "groups": 4},
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(2):
    speech = torch.randn(2, 16_000) * 0.1
    loss, stats, weight = model(speech, torch.tensor([16_000, 12_000]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.update_teacher()
print(sorted(stats))
save_model(model.encoder, FOLDER)
"""
CLASSIFY = """
import torch
from espnet2_sslam import HeadConfig, SSLAM, SSLAMClassifier, SSLAMEncoder
from espnet2_sslam.checkpoint import save_model

encoder = SSLAMEncoder(embed_dim=24, depth=2, num_heads=2, max_frames=320)
model = SSLAMClassifier(encoder, HeadConfig(("dog", "cat"), pooling="attentive"))
speech, lengths = torch.randn(2, 16_000) * 0.1, torch.tensor([16_000, 12_000])
loss, _, weight = model(speech, lengths, torch.eye(2))
loss.backward()
save_model(model, FOLDER)
label, score = SSLAM.from_pretrained(FOLDER).tag(speech[0].numpy(), rate=16_000)[0]
print(label, SSLAM.from_pretrained(FOLDER).embed(speech[0].numpy(), rate=16_000).shape)
"""


def run(code, *words):
    """What a program prints that can import nothing of BLOCKED."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *words],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("code", [PRETRAIN, CLASSIFY], ids=["pretrain", "classify"])
def test_models_train_and_are_saved(tmp_path, code):
    result = run(code.replace("FOLDER", repr(str(tmp_path / "model"))))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("command", ["convert", "embed", "tag", "export", "plot"])
def test_commands_explain_themselves(command):
    code = (
        "import runpy; runpy.run_module('espnet2_sslam.bin.sslam', run_name='__main__')"
    )
    result = run(f"import sys; sys.argv[0] = 'sslam'\n{code}", command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: sslam {command}" in result.stdout


TAG = """
import sys
from espnet2_sslam import SSLAM
from espnet2_sslam.bin.cli import main
model = SSLAM.from_pretrained(sys.argv[1])
print(model.tag(sys.argv[2], top_k=1)[0][0], model.embed(sys.argv[2]).shape)
for suffix in ("csv", "npz", "ark"):
    main(["tag", *sys.argv[1:], "-o", f"{sys.argv[2]}.{suffix}"])
main(["tag", *sys.argv[1:], "--events", "--median", "0.48", "--threshold", "0"])
"""


def test_labels_and_embeddings_of_files(tmp_path):
    from espnet2_sslam.checkpoint import save_model
    from tests.inference_case import CLASSES, classifier, noise, write

    save_model(classifier("mean"), tmp_path / "model")
    clip = write(tmp_path / "clip.wav", noise(1.0, 44_100), 44_100)
    result = run(TAG, str(tmp_path / "model"), clip)
    assert result.returncode == 0, result.stderr
    first, *events = result.stdout.splitlines()
    label, shape = first.split(" ", 1)
    assert label in CLASSES and shape == "(24,)" and len(events) == 1 + len(CLASSES)
    assert (tmp_path / "clip.wav.scp").exists()

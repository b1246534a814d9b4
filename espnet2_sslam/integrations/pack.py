"""Models as ESPnet packs them: one .zip that needs no other file.

Such a file is read by ESPnet's own `unpack`, by espnet_model_zoo's `ModelDownloader`
and by `checkpoint.load_model`. A classifier is packed as a training of
`SSLAMClassificationTask`; an encoder as what other trainings start from: config.yaml
has `encoder: sslam` and `encoder_conf`, model.pth the names `encoder.*`, for
`--init_param model.pth:encoder:encoder`.
"""

import io
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml

import espnet2_sslam
from espnet2_sslam.checkpoint import META_FILE, Model, model_config
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.store import replacing

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.pth"
INPUT = {"input_size": 1, "frontend": None, "normalize": None}  # waveforms


def pack_model(model: Model, path: str | Path, *, timestamp: bool = True) -> Path:
    """Write an encoder or a classifier as a packed model.

    Args:
        model: `SSLAMEncoder` or `SSLAMClassifier`, as `load_model` gives it.
        path: The .zip file; its folder is made, an older file replaced.
        timestamp: Note the time, as ESPnet does; without it the same model gives the
            same bytes.

    Raises:
        ValueError: The name is not that of a .zip file.
        OSError: It cannot be written; an older file is left as it was.
    """
    path = Path(path)
    if path.suffix != ".zip":
        raise ValueError(f"a packed model is a .zip file, got {path}")
    classifier = isinstance(model, SSLAMClassifier)
    kind = "classification" if classifier else "ssl"  # ESPnet's names for these tasks
    meta = {
        "yaml_files": {f"{kind}_train_config": CONFIG_FILE},
        "files": {f"{kind}_model_file": WEIGHTS_FILE},
        "python": sys.version,
        "torch": str(torch.__version__),
        "espnet2_sslam": espnet2_sslam.__version__,
    }
    if timestamp:
        meta["timestamp"] = time.time()
    state = model.state_dict()
    if not classifier:
        state = {f"encoder.{name}": value for name, value in state.items()}
    weights = io.BytesIO()
    torch.save({k: v.detach().cpu().contiguous() for k, v in state.items()}, weights)
    config = yaml.safe_dump(training_config(model), allow_unicode=True)
    members = {
        META_FILE: yaml.safe_dump(meta).encode(),
        CONFIG_FILE: config.encode(),
        WEIGHTS_FILE: weights.getbuffer(),
    }
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)  # a plain one holds no time
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)  # not compressed: weights do not shrink
    return path


def training_config(model: Model) -> dict[str, Any]:
    """The config.yaml of a model: what ESPnet needs to build it."""
    stored = model_config(model)
    encoder_conf = {
        **stored["encoder"],
        "fbank_mean": stored["fbank_mean"],
        "fbank_std": stored["fbank_std"],
    }
    if stored["classifier"] is None:
        return {"encoder": "sslam", "encoder_conf": encoder_conf, **INPUT}
    head = dict(stored["classifier"])
    return {
        "class_list": list(head.pop("classes")),
        "encoder_conf": encoder_conf,
        "model_conf": head,
        "augment_conf": {},
        "input_size": 1,
        "max_samples": None,
        "seed": 0,
    }

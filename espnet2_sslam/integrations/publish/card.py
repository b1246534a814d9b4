"""README.md of a published model: what it is and how to use it."""

import espnet2_sslam
from espnet2_sslam.integrations.publish import sections
from espnet2_sslam.integrations.publish.facts import Facts
from espnet2_sslam.integrations.publish.metadata import metadata
from espnet2_sslam.results import markdown
from espnet2_sslam.units import FRAME_SHIFT_MS, PATCH_SIZE, SAMPLE_RATE

PACKED_FILE = "espnet_model.zip"
CITATIONS = """```bibtex
@inproceedings{alex2025sslam,
  title = {{SSLAM}: Enhancing Self-Supervised Models with Audio Mixtures for Polyphonic
    Soundscapes},
  author = {Alex, Tony and Ahmed, Sara and Mustafa, Armin and Awais, Muhammad and
    Jackson, Philip J. B.},
  booktitle = {International Conference on Learning Representations ({ICLR})},
  year = {2025},
  url = {https://arxiv.org/abs/2506.12222}
}
@inproceedings{chen2024eat,
  title = {{EAT}: Self-Supervised Pre-Training with Efficient Audio Transformer},
  author = {Chen, Wenxi and Liang, Yuzhe and Ma, Ziyang and Zheng, Zhisheng and
    Chen, Xie},
  booktitle = {International Joint Conference on Artificial Intelligence ({IJCAI})},
  year = {2024},
  url = {https://arxiv.org/abs/2401.03497}
}
```"""
USE_CLASSIFIER = """```python
from espnet2_sslam import SSLAM

MODEL = "{model}"{comment}
model = SSLAM.from_pretrained(MODEL)
labels = model.tag("clip.wav", top_k=3)  # [(label, score), ...]
```

With Hugging Face transformers:

```python
import espnet2_sslam.integrations.huggingface
from transformers import pipeline

classify = pipeline("audio-classification", model=MODEL)
print(classify("clip.wav", top_k=3))
```"""
USE_ENCODER = """```python
from espnet2_sslam import SSLAM

MODEL = "{model}"{comment}
model = SSLAM.from_pretrained(MODEL)
features = model.embed("clip.wav", pooling="mean")  # ({width},)
```

With Hugging Face transformers:

```python
import espnet2_sslam.integrations.huggingface
import soundfile
from transformers import AutoFeatureExtractor, AutoModel

wave, rate = soundfile.read("clip.wav", dtype="float32")  # mono, {rate} Hz
inputs = AutoFeatureExtractor.from_pretrained(MODEL)(
    wave, sampling_rate=rate, return_tensors="pt"
)
hidden = AutoModel.from_pretrained(MODEL)(**inputs).last_hidden_state
```"""
USE_ESPNET_ENCODER = (
    f"In ESPnet, `{PACKED_FILE}` is a packed model: "
    f"`espnet2.main_funcs.pack_funcs.unpack` takes it apart, and "
    "`--init_param model.pth:encoder:encoder` starts a training from it."
)
USE_ESPNET_CLASSIFIER = (
    f"In ESPnet, `{PACKED_FILE}` is a packed model, as `unpack` of "
    "`espnet2.main_funcs.pack_funcs` and espnet_model_zoo's `ModelDownloader` read it."
)


def write_card(facts: Facts, hashes: dict[str, str]) -> str:
    """The text of README.md.

    Args:
        facts: What is known about the model.
        hashes: SHA-256 of the other files, by name.
    """
    parts = [
        f"# {facts.name}",
        _summary(facts),
        _properties(facts),
        "## Use",
        f"With the Python package espnet2_sslam {espnet2_sslam.__version__} (audio of "
        "any rate, number of channels and length):",
        *_use(facts),
        "## Training",
        *sections.training(facts),
        "## Results",
        *sections.results(facts),
        "## Limits",
        "\n".join(f"- {line}" for line in sections.limits(facts)),
        "## Licence",
        *sections.licence(facts),
        "## Origin of the weights",
        *sections.origin(facts),
        "## Files",
        markdown(
            ["file", "SHA-256"], [[f"`{n}`", f"`{h}`"] for n, h in hashes.items()]
        ),
        "`sha256sum -c checksums.txt` checks them, this card included.",
        "## Citation",
        CITATIONS,
    ]
    return metadata(facts) + "\n" + "\n\n".join(parts) + "\n"


def _summary(facts: Facts) -> str:
    """What it is, in a sentence."""
    if facts.is_classifier:
        classes = len(facts.source.classes)
        what = f"An audio classifier ({classes} classes) on an SSLAM encoder"
    else:
        what = "An audio encoder (SSLAM)"
    phases = [t.kind for t in facts.lineage.trainings if t.kind.startswith("phase")]
    if "phase 2" in phases:
        return f"{what}, pre-trained without labels on single sounds and on mixtures."
    if phases:
        return f"{what}, pre-trained without labels (phase 1: no mixtures)."
    return f"{what}."


def _properties(facts: Facts) -> str:
    """Sizes, as the model itself has them."""
    source, encoder = facts.source, facts.source.encoder
    step = PATCH_SIZE * FRAME_SHIFT_MS
    rows: list[tuple] = [
        ("parameters", f"{source.parameters / 1e6:.2f} million"),
        (
            "encoder",
            f"{encoder.config.depth} blocks, {encoder.config.embed_dim} channels",
        ),
        ("input", f"audio; the model hears it at {SAMPLE_RATE} Hz, mono"),
        ("output of the encoder", f"a vector per {step} ms and frequency band"),
        (
            "longest piece at once",
            f"{encoder.config.max_frames * FRAME_SHIFT_MS / 1000:g} s",
        ),
    ]
    if facts.is_classifier:
        kind = {"multi_label": "several labels per clip", "multi_class": "one label"}
        rows.append(("classes", ", ".join(source.classes[:20]) + _more(source.classes)))
        rows.append(("task", kind[source.model.task]))
        rows.append(("pooling", source.model.pooling.kind))
    return markdown(["", ""], rows)


def _more(classes: list[str]) -> str:
    """What a shortened list of classes leaves out."""
    left = len(classes) - 20
    return f" and {left} more (config.json)" if left > 0 else ""


def _use(facts: Facts) -> list[str]:
    """Code that runs as it is shown."""
    model = facts.options.hf_repo or facts.name
    if facts.options.hf_repo and facts.options.revision:
        model += f"@{facts.options.revision}"
    comment = "" if facts.options.hf_repo else "  # this folder"
    text = USE_CLASSIFIER if facts.is_classifier else USE_ENCODER
    width = facts.source.encoder.config.embed_dim
    text = text.format(model=model, comment=comment, width=width, rate=SAMPLE_RATE)
    return [text, USE_ESPNET_CLASSIFIER if facts.is_classifier else USE_ESPNET_ENCODER]

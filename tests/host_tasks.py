"""Which of ESPnet's tasks take SSLAM: each that is offered trains on a small batch.

`python -m tests.host_tasks` prints the table, `--write` puts it into docs/hosts.md.
"""

import argparse
import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
import torchaudio
import yaml

import espnet2_sslam  # noqa: F401
from espnet2_sslam.integrations.espnet import ESPNET2, ESPNET3_ASR, OFFERED

DOCS = Path(__file__).resolve().parent.parent / "docs" / "hosts.md"
BEGIN, END = "<!-- tasks: made by tests/host_tasks.py -->", "<!-- end of tasks -->"
TOKENS = "<blank> <unk> <na> <nospeech> <en> <asr> <notimestamps> <0.00> <30.00> a b"
TOKENS = [*TOKENS.split(), "<sop>", "<sos>", "<eos>", "<sos/eos>"]
SAMPLES = torch.tensor([20_477, 17_031])  # no whole number of steps
TINY = ("embed_dim=48", "depth=1", "num_heads=3", "mlp_ratio=1.0")
SMALL = ("output_size=16", "attention_heads=2", "linear_units=16", "num_blocks=1")
SHARING = ("enh_s2t", "gan_tok")  # take over the choices of asr, st and diar
TASKS = ("asr", "slu", "st", "s2t", "s2t_ctc", "asr_transducer", "esp2_asr.task")
LAYER = {"attention_heads": 2, "linear_units": 16, "num_blocks": 1}
BODY = {"block_type": "conformer", "hidden_size": 16, "linear_size": 16, "heads": 2}
LOSSES = [{"name": "synthesis", "type": "tacotron", "conf": {}}]
SYNTHESIZER = dict(embed_dim=16, adim=16, dlayers=1, dunits=16, postnet_chans=16)
SPECIAL = {  # options of tasks that are built unlike the others
    "asr_transducer": {
        "frontend_conf": {"upsample": 8},
        "encoder_conf": {"body_conf": [{**BODY, "conv_mod_kernel_size": 3}]},
        "decoder": "stateless",
        "joint_network_conf": {"joint_space_size": 16},
    },
    "aqa": {
        "metric2id": ["quality"],
        "use_ref_audio": False,
        "use_ref_text": False,
        "universa_conf": {
            "embedding_size": 16,
            "audio_encoder_params": {**LAYER, "input_layer": "linear"},
        },
    },
    "s2st": {
        "s2st_type": "translatotron",
        "tgt_feats_extract": "fbank",
        "tgt_feats_extract_conf": {"win_length": 1024},
        "src_normalize": None,
        "synthesizer": "translatotron",
        "synthesizer_conf": SYNTHESIZER,
        "losses": LOSSES,
    },
}


def several(option, values):
    return [word for value in values for word in (option, value)]


def options(task, place, known, tokens):
    """The command line of a small model."""
    words = ["--normalize", "none"] if "--normalize" in known else []
    words += [f"--{place}", "sslam", *several(f"--{place}_conf", TINY)]
    if place == "encoder":
        words += ["--input_size", "1"]
        words += ["--frontend", "none"] if task in ("diar", "lid", "spk") else []
    else:
        words += ["--frontend_conf", "freeze=false"]
    if place == "frontend" and task in ("lid", "spk"):
        words += ["--encoder", "ecapa_tdnn", *several("--encoder_conf", ["ndim=16"])]
    elif place == "frontend" and task not in ("asr_transducer", "aqa"):
        name = "e_branchformer_ctc" if task == "s2t_ctc" else "transformer"
        words += ["--encoder", name, *several("--encoder_conf", SMALL)]
        words += ["--encoder_conf", "input_layer=linear"]
    if task in TASKS and task not in ("s2t_ctc", "asr_transducer"):
        words += ["--decoder", "transformer"]
        words += several("--decoder_conf", SMALL[1:])
    if task == "s2t_ctc":
        words += ["--promptencoder", "transformer"]
        words += several("--promptencoder_conf", SMALL)
    for option in "--token_list", "--src_token_list":
        words += [option, tokens] if option in known else []
    for option in "--spk_num", "--lang_num", "--num_spk":
        words += [option, "2"] if option in known else []
    if task == "diar":
        words += [f"--{place}_conf", "upsample=8"]
        words += several(
            "--label_aggregator_conf", ["hop_length=320", "win_length=320"]
        )
    if task in SPECIAL:
        config = tokens.with_name(f"{task}.yaml")
        config.write_text(yaml.safe_dump(SPECIAL[task]))
        words = ["--config", config, *words]
    return [str(word) for word in words]


def batch(task):
    """Two clips of noise with what the task learns from."""
    names = {"aqa": ["audio"], "s2st": ["src_speech", "tgt_speech"]}
    given = {}
    for name in names.get(task, ["speech"]):
        given[name] = 0.1 * torch.randn(2, int(SAMPLES.max()))
        given[f"{name}_lengths"] = SAMPLES
    text, two = torch.tensor([[9, 10], [10, 9]]), torch.tensor([2, 2])
    names = {"st": ["text", "src_text"], "s2t": ["text", "text_prev", "text_ctc"]}
    names["s2t_ctc"] = [*names["s2t"], "prefix"]
    for name in names.get(task, ["text"] if task in TASKS else []):
        given |= {name: text, f"{name}_lengths": two}
    classes = torch.tensor([[0], [1]])
    label = {"lid": "lid_labels", "spk": "spk_labels"}.get(task, "label")
    if task in ("lid", "spk", "cls"):
        given |= {label: classes, f"{label}_lengths": torch.tensor([1, 1])}
    if task == "diar":
        active = torch.randint(0, 2, (2, int(SAMPLES.max()), 2)).float()
        given |= {"spk_labels": active, "spk_labels_lengths": SAMPLES}
    if task == "aqa":
        given["metrics"] = {"quality": torch.tensor([1.0, 2.0])}
    return given


def with_transducer_loss():
    """Let torchaudio compute what ESPnet asks warp-transducer for (not in PyPI)."""

    class RNNTLoss(torchaudio.transforms.RNNTLoss):
        def __init__(self, reduction, fastemit_lambda):
            assert fastemit_lambda == 0
            super().__init__(blank=0, reduction=reduction)

    sys.modules.setdefault("warprnnt_pytorch", ModuleType("warprnnt_pytorch"))
    vars(sys.modules["warprnnt_pytorch"]).setdefault("RNNTLoss", RNNTLoss)


def build(module, place, tokens, more=()):
    """A task, its arguments and its small model."""
    content = vars(importlib.import_module(module)).values()
    (task,) = (
        c
        for c in content
        if isinstance(c, type) and hasattr(c, "build_model") and c.__module__ == module
    )
    parser = task.get_parser()
    known = {option for a in parser._actions for option in a.option_strings}
    words = options(short(module), place, known, tokens)
    args = parser.parse_args([*words, *more])
    return task, args, task.build_model(args)


def train(module, place, tokens):
    """One forward and backward pass as ESPnet's trainer does; raises what it raises."""
    if short(module) == "asr_transducer":
        with_transducer_loss()
    model = build(module, place, tokens)[2].train()
    loss = model(**batch(short(module)))[0]
    loss.backward()
    assert torch.isfinite(loss), loss
    changed = [
        p.grad.abs().sum()
        for n, p in model.named_parameters()
        if n.startswith(f"{place}.") and p.grad is not None
    ]
    assert changed and sum(changed) > 0


def short(module):
    return module.removeprefix(ESPNET2).removeprefix("espnet3.systems.")


def table():
    """Markdown: every task that is offered `sslam` and was trained with it."""
    lines = ["| task | `encoder: sslam` | `frontend: sslam` |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.txt"
        tokens.write_text("\n".join(TOKENS) + "\n")
        for module, places in sorted(OFFERED.items()):
            cells = []
            for place in "encoder", "frontend":
                if place in places:
                    torch.manual_seed(0)
                    train(module, place, tokens)
                cells.append("trains" if place in places else "not offered")
            lines.append(f"| {module} | {' | '.join(cells)} |")
    return "\n".join(lines)


def everywhere():
    """(module, choice) of all of ESPnet's tasks that offer `sslam`."""
    import espnet2.tasks
    from espnet2.train.class_choices import ClassChoices

    names = [info.name for info in pkgutil.iter_modules(espnet2.tasks.__path__)]
    modules = [ESPNET2 + name for name in names if name not in SHARING] + [ESPNET3_ASR]
    found = set()
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:  # svs wants six; 202511 has no espnet3
            assert error.name in ("six", "espnet3", "espnet3.systems"), error
            continue
        for choices in vars(module).values():
            if isinstance(choices, ClassChoices) and "sslam" in choices.classes:
                found.add((name, choices.name))
    return found


def documented():
    """The table in docs/hosts.md."""
    return DOCS.read_text().split(BEGIN + "\n")[1].split("\n" + END)[0]


def main():
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/hosts.md")
    made = table()
    if parser.parse_args().write:
        old, new = (f"{BEGIN}\n{text}\n{END}" for text in (documented(), made))
        DOCS.write_text(DOCS.read_text().replace(old, new))
    else:
        print(made)


if __name__ == "__main__":
    main()

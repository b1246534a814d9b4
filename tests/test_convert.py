"""The command `sslam convert`, as a user runs it."""

import json
import subprocess
import sys

import pytest
import torch

from espnet2_sslam.bin import sslam_convert
from espnet2_sslam.checkpoint import check_init_param, load_model
from espnet2_sslam.corpus import read_class_names, slug
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from tests.checkpoint_case import FINETUNED, PRETRAIN, unpack


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """Return a folder with the authors' tiny checkpoints."""
    folder = tmp_path_factory.mktemp("authors")
    for name in (PRETRAIN, FINETUNED):
        unpack(name, folder)
    return folder


def convert(*words):
    sslam_convert.main([str(word) for word in words])


@pytest.mark.parametrize("name", [PRETRAIN, FINETUNED])
def test_folder_export_and_authors_file_hold_the_same_model(
    authors, tmp_path, capsys, name
):
    convert(authors / name, tmp_path / "ours")
    shown = capsys.readouterr().out
    assert "3 blocks, 48 channels, 4 heads" in shown
    assert ("5 classes (l0" in shown) == (name == FINETUNED)
    assert "fbank mean, std: -4.2680, 4.5690" in shown
    convert(tmp_path / "ours", tmp_path / "back.pt")
    convert(tmp_path / "ours", tmp_path / "export", "--to", "huggingface")
    original = load_model(authors / name)
    assert load_model(tmp_path / "ours").config == original.config
    for copy in ("ours", "back.pt", "export"):
        again = load_model(tmp_path / copy)
        assert again.classes == original.classes
        state = again.model.state_dict()
        for key, value in original.model.state_dict().items():
            assert torch.equal(state.pop(key), value)
        assert not state
    files = {path.name for path in (tmp_path / "ours").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_pretraining_goes_on_from_the_authors_weights(authors, tmp_path):
    convert(authors / PRETRAIN, tmp_path / "start.pth")
    encoder = SSLAMEncoder(embed_dim=48, depth=3, num_heads=4)
    decoder_conf = {"num_layers": 2, "groups": 4}
    model = SSLAMPretrainModel(encoder, decoder_conf=decoder_conf)
    for part in ("encoder", "decoder", "teacher"):
        check_init_param(model, f"{tmp_path / 'start.pth'}:{part}:{part}")
    check_init_param(model, f"{tmp_path / 'start.pth'}:::num_updates")


def test_phase_2_begins_with_the_authors_phase_1(authors, tmp_path):
    pytest.importorskip("espnet2", reason="ESPnet is not installed")
    from espnet2_sslam.tasks import SSLAMTask
    from tests.toy_task import arguments, write_clips

    convert(authors / PRETRAIN, tmp_path / "start.pth")
    start = torch.load(tmp_path / "start.pth")
    data = write_clips(tmp_path / "train", 4), write_clips(tmp_path / "valid", 2)
    words = ["--init_param", f"{tmp_path}/start.pth:::num_updates", "--max_epoch", "1"]
    words += ["--encoder_conf", "embed_dim=48", "--encoder_conf", "depth=3"]
    words += ["--encoder_conf", "num_heads=4", "--num_iters_per_epoch", "1"]
    words += ["--padding", "authors"]  # for clips as short as these
    conf = "{mixture: true, clip_frames: 128, clone_batch: 2, "
    conf += (
        "decoder_conf: {num_layers: 2, groups: 4}, ema_decay: 1.0, ema_end_decay: 1.0}"
    )
    words += ["--model_conf", conf, "--optim_conf", "lr=1.0e-12"]
    SSLAMTask.main(cmd=arguments(*data, tmp_path / "run", *words))
    trained = torch.load(tmp_path / "run/latest.pth")
    assert trained.pop("num_updates") == trained.pop("num_batches") == 1
    for name, value in trained.items():  # nothing was learned: all is the authors'
        assert torch.allclose(value, start[name], atol=1e-6), name


def test_labels_are_given_by_a_table_in_any_order(authors, tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f'{i},l{i},"sound, number {i}"' for i in (3, 0, 4, 1, 2)]
    table.write_text("\n".join(["index,mid,display_name", *rows]))
    convert(authors / FINETUNED, tmp_path / "named", "--labels", table)
    config = json.loads((tmp_path / "named/config.json").read_text())
    assert config["id2label"]["3"] == "sound, number 3"
    assert config["classifier"]["classes"] == [f"sound, number {i}" for i in range(5)]


def test_a_list_of_names_keeps_their_commas(tmp_path):
    names = ["Male speech, man speaking", "id", "Dog"]
    (tmp_path / "labels").write_text("\ufeff" + "\r\n".join(names), "utf-8")
    assert read_class_names(tmp_path / "labels") == names


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no labels"),
        ("a\nb\na\nc\nd\n", "a more than once"),
        ("a\nb\n", "has 2 labels, the checkpoint 5"),
        ("0,a\n2,b\n", "must count the classes, 0 to 1"),
        ("x,y\nz,w\n", "which column holds the names"),
        ("0,Speech\n1,Child speech, kid\n", "rows of 2 and 3 cells: .* double quotes"),
        ("index,mid,display_name\n0,/m/0\n", "rows of 2 cells"),
        ("0 /m/0 Speech\n1 /m/1 Dog\n", "a number before each name"),
        ("\n".join(f"{i},/m/{i},{n}" for i, n in enumerate("xbcde")), "but not a"),
        ("a\tv\nw\tb\nx\tc\ny\td\nz\te\n", "but not one column"),
        ("a\nb\nc\nd\nx\n", "4 of the checkpoint's 5 classes .a., but not e"),
    ],
)
def test_wrong_label_files_are_refused(tmp_path, text, message):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / "labels", known=list("abcde"))


NAMES = ["Speech", "Child speech, kid speaking", "Dog", "Cat", "C#"]
WORDS = ["Speech", "Child%20speech,%20kid%20speaking", "Dog", "Cat", "C#"]
LABEL_FILES = {
    "plain list": "\n".join(NAMES),
    "quoted list": "\n".join(f'"{name}"' for name in NAMES),
    "index,mid,name": "\n".join(f'{i},/m/{i},"{n}"' for i, n in enumerate(NAMES)),
    "index,name,mid": "\n".join(f'{i},"{n}",/m/{i}' for i, n in enumerate(NAMES)),
    "a column more": "index,mid,display_name,quality\n"
    + "\n".join(f'{i},/m/{i},"{n}",{90 + i}' for i, n in enumerate(NAMES)),
    "tabs": "\n".join(f"{i}\t/m/{i}\t{n}" for i, n in enumerate(NAMES)),
    "semicolons": "index;name\n" + "\n".join(f"{i};{n}" for i, n in enumerate(NAMES)),
    "label_names.tsv": "\n".join(f"/m/{i}\t{n}" for i, n in enumerate(NAMES)),
    "index,name": "\n".join(f'{i},"{n}"' for i, n in enumerate(NAMES)),
}


@pytest.mark.parametrize("kind", LABEL_FILES)
def test_names_are_read_from_every_kind_of_file(tmp_path, kind):
    (tmp_path / "labels").write_text(LABEL_FILES[kind] + "\n")
    assert read_class_names(tmp_path / "labels") == NAMES
    assert read_class_names(tmp_path / "labels", list("abcde")) == NAMES


@pytest.mark.parametrize("kind", LABEL_FILES)
def test_the_order_of_classes_is_the_checkpoints_wherever_it_knows_them(tmp_path, kind):
    (tmp_path / "labels").write_text(LABEL_FILES[kind] + "\n")
    order, has_ids = [3, 1, 4, 0, 2], "/m/" in LABEL_FILES[kind]
    spellings = [NAMES, WORDS, [slug(name) for name in NAMES]]
    for words in [*spellings, [f"/m/{i}" for i in range(5)]][: 4 if has_ids else 3]:
        known = [words[i] for i in order]
        expected = [NAMES[i] for i in order]
        assert read_class_names(tmp_path / "labels", known) == expected


def test_more_than_ten_numbered_classes_keep_their_order(authors, tmp_path):
    content = torch.load(authors / FINETUNED, weights_only=False)
    names = [f"sound {i}" for i in range(12)]
    content["task_state"] = {"labels": {name: str(i) for i, name in enumerate(names)}}
    for name in ("head.weight", "head.bias"):
        value = content["model"][name]
        content["model"][name] = value.repeat(3, *[1] * (value.dim() - 1))[:12].clone()
    torch.save(content, tmp_path / "twelve.pt")
    assert load_model(tmp_path / "twelve.pt").classes == names


def test_constants_of_the_authors_loader(authors, tmp_path):
    content = torch.load(authors / FINETUNED, weights_only=False)
    for flag, stats in (
        ("esc50_eval", (-6.627, 5.359)),
        ("spcv2_eval", (-6.846, 5.565)),
        (None, (-4.268, 4.569)),
    ):
        for section in (content["cfg"]["model"], content["cfg"]["task"]):
            section.update({"esc50_eval": False, "spcv2_eval": False})
            section.update({flag: True} if flag else {})
        torch.save(content, tmp_path / "a.pt")
        log_mel = load_model(tmp_path / "a.pt").encoder.log_mel
        assert [float(log_mel.mean), float(log_mel.std)] == pytest.approx(stats)


def test_fbank_and_task_are_set_by_the_user(authors, tmp_path):
    words = ("--fbank_mean", "-5.275", "--fbank_std", "3.268", "--task", "multi_class")
    convert(authors / FINETUNED, tmp_path / "spass", *words)
    loaded = load_model(tmp_path / "spass")
    assert float(loaded.encoder.log_mel.std) == pytest.approx(3.268)
    assert loaded.model.config.task == "multi_class"


def test_an_output_that_is_there_is_not_replaced(authors, tmp_path):
    (tmp_path / "x.pt").write_text("precious")
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        convert(authors / PRETRAIN, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_text() == "precious"
    convert(authors / PRETRAIN, tmp_path / "x.pt", "--overwrite")
    assert load_model(tmp_path / "x.pt").encoder.config.depth == 3


def test_wrong_options_end_in_one_line(authors, tmp_path):
    for words, message in [
        (("--fbank_mean", "1"), "together"),
        (("--num_heads", "5"), "multiple of num_heads"),
        (("--task", "multi_label"), "no classification head"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert(authors / PRETRAIN, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_on_stderr_and_status_1(tmp_path):
    (tmp_path / "x.pt").write_text("nothing")
    command = [sys.executable, "-m", "espnet2_sslam.bin.sslam", "convert"]
    done = subprocess.run(
        [*command, tmp_path / "x.pt", tmp_path / "y"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "not a checkpoint" in done.stderr
    assert not (tmp_path / "y").exists()

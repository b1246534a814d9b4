"""Files, folders and lists become one list of audio files with names."""

import io
import os

import pytest

from espnet2_sslam.inference import collect_files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder `clips` with audio, other files and a hidden one."""
    for name in (
        "clips/b.wav",
        "clips/a.FLAC",
        "clips/sub/c.mp3",
        "clips/.hidden.wav",
        "clips/.git/d.wav",
        "clips/notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _names(*args, **kwargs):
    return [item.name for item in collect_files(*args, **kwargs)]


@pytest.mark.parametrize(
    "paths, names",
    [
        (["clips"], ["clips/a.FLAC", "clips/b.wav", "clips/sub/c.mp3"]),
        (["./clips/sub/"], ["clips/sub/c.mp3"]),
        # Each once, at its first place
        (
            ["clips/b.wav", "clips/sub", "./clips/b.wav"],
            ["clips/b.wav", "clips/sub/c.mp3"],
        ),
        # A file named itself needs no suffix and need not exist
        (["clips/notes.txt", "gone.wav"], ["clips/notes.txt", "gone.wav"]),
    ],
)
def test_folders_give_their_audio_in_order_and_files_themselves(tree, paths, names):
    assert _names(paths) == names
    assert _names(["clips"], names="file") == ["a.FLAC", "b.wav", "c.mp3"]


def test_link_loops_end_and_linked_folders_count_once(tree):
    os.symlink(tree / "clips", tree / "clips/sub/loop")
    os.symlink(tree / "clips/sub", tree / "again")
    assert _names(["clips", "again"]) == [
        "clips/a.FLAC",
        "clips/b.wav",
        "clips/sub/c.mp3",
    ]


def test_a_list_has_a_path_per_line_in_a_file_or_on_standard_input(tree, monkeypatch):
    names = ["clips/two words.wav", os.fsdecode(b"clips/\xff.wav")]
    for name in names:
        (tree / name).write_bytes(b"x")
    content = b"\xef\xbb\xbf" + b"".join(os.fsencode(name) + b"\r\n" for name in names)
    (tree / "list.txt").write_bytes(content + b"\nclips/sub\n")
    assert _names([], ["list.txt"]) == [*names, "clips/sub/c.mp3"]
    assert set(names) < set(_names(["clips"]))

    class Stdin:
        buffer = io.BytesIO(content)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert _names([], ["-"]) == names


def test_a_kaldi_list_names_its_files(tree):
    lines = ["utt2 clips/b.wav", "utt1\tclips/a b.wav", "again clips/b.wav"]
    (tree / "wav.scp").write_text("\n".join(lines) + "\n")
    assert collect_files([], ["wav.scp"]) == [
        ("clips/b.wav", "utt2"),
        ("clips/a b.wav", "utt1"),
        ("clips/b.wav", "again"),
    ]


@pytest.mark.parametrize("av", [False, True])
def test_what_only_pyav_decodes_is_taken_with_it_or_counted(
    tree, caplog, monkeypatch, av
):
    (tree / "clips/song.m4a").write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "av" and av)
    assert ("clips/song.m4a" in _names(["clips"])) == av
    assert ("1 .m4a" in caplog.text) != av


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("wav.scp", "utt1", "line 1: need `<name> <path>`"),
        ("wav.scp", "\nutt2 clips/b.wav", "line 1: need"),
        ("wav.scp", "utt1 sox a.wav -t wav - |", "commands are not run"),
        ("wav.scp", "x clips/b.wav\nx clips/a.FLAC", "two files are called x"),
        ("list.txt", "clips/b.wav\nother/b.wav", r"two files are called b\.wav"),
        ("list.txt", "RIFF\0\0", "not a text file"),
        ("list.txt", "empty", "no audio files in list.txt"),
        (None, "", "no audio given"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(tree, name, content, words):
    (tree / "empty").mkdir()
    if name:
        (tree / name).write_text(content + "\n")
    with pytest.raises(ValueError, match=words):
        collect_files([], [name] if name else [], names="file")

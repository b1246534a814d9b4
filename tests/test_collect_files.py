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


def test_a_folder_gives_its_audio_in_order_without_hidden_files(tree):
    assert _names(["clips"]) == ["clips/a.FLAC", "clips/b.wav", "clips/sub/c.mp3"]


def test_a_name_is_the_path_as_given(tree):
    assert _names(["./clips/sub/"]) == ["clips/sub/c.mp3"]
    absolute = str(tree / "clips/b.wav")
    assert collect_files([absolute]) == [(absolute, absolute)]


def test_a_file_named_twice_is_taken_once_at_its_first_place(tree):
    given = ["clips/b.wav", "clips", "./clips/b.wav", str(tree / "clips/b.wav")]
    assert _names(given) == ["clips/b.wav", "clips/a.FLAC", "clips/sub/c.mp3"]


def test_a_file_named_itself_needs_no_suffix_and_need_not_exist(tree):
    assert _names(["clips/notes.txt", "gone.wav"]) == ["clips/notes.txt", "gone.wav"]


def test_link_loops_end_and_linked_folders_count_once(tree):
    os.symlink(tree / "clips", tree / "clips/sub/loop")
    os.symlink(tree / "clips/sub", tree / "again")
    assert _names(["clips", "again"]) == [
        "clips/a.FLAC",
        "clips/b.wav",
        "clips/sub/c.mp3",
    ]


def test_two_links_to_one_file_are_two_clips(tree):
    os.symlink(tree / "clips/b.wav", tree / "clips/link.wav")
    assert "clips/link.wav" in _names(["clips"])


def test_a_list_has_a_path_per_line_with_blanks_in_it(tree):
    (tree / "clips/two words.wav").write_bytes(b"x")
    (tree / "list.txt").write_text("\ufeffclips/two words.wav\r\n\nclips/sub\n")
    assert _names([], ["list.txt"]) == ["clips/two words.wav", "clips/sub/c.mp3"]


def test_a_list_comes_from_standard_input(tree, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"clips/b.wav\nclips/a.FLAC\n")

    monkeypatch.setattr("sys.stdin", Stdin)
    assert _names([], ["-"]) == ["clips/b.wav", "clips/a.FLAC"]


def test_a_kaldi_list_names_its_files(tree):
    (tree / "wav.scp").write_text("utt2 clips/b.wav\nutt1\tclips/a b.wav\n")
    found = collect_files([], ["wav.scp"])
    assert found == [("clips/b.wav", "utt2"), ("clips/a b.wav", "utt1")]


def test_a_kaldi_list_may_name_one_file_twice(tree):
    (tree / "wav.scp").write_text("x clips/b.wav\ny clips/b.wav\n")
    assert _names([], ["wav.scp"]) == ["x", "y"]


def test_names_that_are_not_utf8_are_kept(tree):
    name = os.fsdecode(b"clips/\xff.wav")
    open(name, "wb").close()
    assert name in _names(["clips"])
    (tree / "list.txt").write_bytes(b"clips/\xff.wav\n")
    assert _names([], ["list.txt"]) == [name]


def test_files_may_be_called_by_their_last_part(tree):
    assert _names(["clips"], names="file") == ["a.FLAC", "b.wav", "c.mp3"]


def test_two_files_of_one_name_are_refused(tree):
    (tree / "clips/sub/b.wav").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"two files are called b\.wav"):
        collect_files(["clips"], names="file")
    (tree / "wav.scp").write_text("x clips/b.wav\nx clips/a.FLAC\n")
    with pytest.raises(ValueError, match="two files are called x"):
        collect_files([], ["wav.scp"])


@pytest.mark.parametrize(
    "line, words",
    [
        ("utt1", "line 1: need `<name> <path>`"),
        ("", "line 1: need"),
        ("utt1 sox a.wav -t wav - |", "commands are not run"),
    ],
)
def test_a_bad_line_of_a_kaldi_list_is_named(tree, line, words):
    (tree / "wav.scp").write_text(line + "\nutt2 clips/b.wav\n")
    with pytest.raises(ValueError, match=words):
        collect_files([], ["wav.scp"])


def test_nothing_found_says_where(tree):
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match="no audio files in empty"):
        collect_files(["empty"])
    with pytest.raises(ValueError, match="no audio given"):
        collect_files([])


def test_audio_that_cannot_be_decoded_is_left_out_of_folders_with_a_word(tree, caplog):
    (tree / "clips/song.m4a").write_bytes(b"x")
    assert "clips/song.m4a" not in _names(["clips"])
    assert "1 .m4a" in caplog.text


def test_an_audio_file_as_list_is_refused(tree):
    (tree / "a.wav").write_bytes(b"RIFF\0\0")
    with pytest.raises(ValueError, match="not a text file"):
        collect_files([], ["a.wav"])

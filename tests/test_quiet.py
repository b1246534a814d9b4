"""ESPnet's note is dropped, and nothing else."""

import sys

from espnet2_sslam._hook import without_flash_attention_note


def test_only_the_note_is_dropped(capsys):
    with without_flash_attention_note():
        print("before")
        print("Failed to import Flash Attention, using ESPnet default: none")
        print("Failed to import Flash Attention, using ESPnet default", file=sys.stderr)
        print()
        print("after", file=sys.stderr)
    captured = capsys.readouterr()
    assert captured.out == "before\n\n" and captured.err == "after\n"


def test_print_is_found_under_its_name():
    with without_flash_attention_note():  # as numba looks it up while it is imported
        assert getattr(sys.modules[print.__module__], print.__name__) is print

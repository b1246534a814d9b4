"""Speech Commands v0.01 and v0.02 with their test archives, as they unpack.

Per word and version: 3 training, 1 validation and 1 test clip. Some names of the test
archives end in .wav.wav; one clip of the validation list of v0.02 is missing.
"""

from pathlib import Path

from tests.corpora.sounds import Sounds

KEYWORDS = "yes no up down left right on off stop go".split()
OTHERS_1 = (
    "bed bird cat dog eight five four happy house marvin nine one seven sheila six "
    "three tree two wow zero"
).split()  # 30 words in v0.01
OTHERS_2 = [*OTHERS_1, "backward", "follow", "forward", "learn", "visual"]  # 35 words
NOISES = ("doing_the_dishes", "dude_miaowing", "exercise_bike")
NOISE_SECONDS = 5.5
TEST_CLIPS = 2  # of each class of the test archive
MISSING = "yes/0000000b_nohash_0.wav"  # of v0.02's validation list


def make(folder: Path, clips=None) -> None:
    """Make the four folders."""
    sounds = Sounds(clips, seconds=1.0)
    make_version(Path(folder), "0.01", [*KEYWORDS, *OTHERS_1], sounds)
    make_version(Path(folder), "0.02", [*KEYWORDS, *OTHERS_2], sounds)
    (Path(folder) / "speech_commands_v0.02" / MISSING).unlink()


def make_version(folder: Path, version: str, words: list, sounds: Sounds) -> None:
    """One version and its test archive."""
    root = folder / f"speech_commands_v{version}"
    lists = {"validation_list.txt": [], "testing_list.txt": []}
    for word in words:
        for number, speaker in enumerate(("00a1b2c3", "00a1b2c3", "1f2e3d4c")):
            name = f"{speaker}_nohash_{number}.wav"
            sounds.write(root / word / name, [word], seconds=0.9)
        for code, name in (("b", "validation_list.txt"), ("c", "testing_list.txt")):
            clip = f"{word}/0000000{code}_nohash_0.wav"
            lists[name].append(clip)
            sounds.write(root / clip, [word])
    for name, names in lists.items():
        (root / name).write_text("\n".join(names) + "\n")
    for name in NOISES:
        sounds.write(
            root / "_background_noise_" / f"{name}.wav", [], seconds=NOISE_SECONDS
        )
    (root / "_background_noise_" / "README.md").write_text("noises\n")
    (root / "README.md").write_text("# Speech Commands Data Set\n")
    (root / "LICENSE").write_text("Creative Commons BY 4.0\n")
    test = folder / f"speech_commands_test_set_v{version}"
    for word in [*KEYWORDS, "_unknown_", "_silence_"]:
        for number in range(TEST_CLIPS):
            name = f"{number:08x}_nohash_0.wav" + (".wav" if number else "")
            sounds.write(test / word / name, [] if word == "_silence_" else [word])

"""The tasks: what s3prl calls them, how they are scored, how many folds they have."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """A task of s3prl.

    Attributes:
        name: Our word for it, and the name of its folder.
        module: s3prl's downstream expert (SUPERB) or problem class (HEAR).
        title: What it is, for the table.
        metric: What the best checkpoint, the learning rate and the table go by.
        folds: Number of cross-validation folds, 1 for fixed splits.
        hear: Whether `s3prl.main` runs it rather than `s3prl.run_downstream`.
    """

    name: str
    module: str
    title: str
    metric: str = "accuracy"
    folds: int = 1
    hear: bool = False


def _hear(name: str, title: str, folds: int = 1, metric: str = "top1_acc") -> Task:
    return Task(name, name, title, metric, folds, True)


# Folds and metrics are those of s3prl 0.4.18's own configurations: s3prl/problem/common
# for HEAR, and five folds for IEMOCAP as SUPERB reports them.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ks", "speech_commands", "keyword spotting"),
        Task("ic", "fluent_commands", "intent classification"),
        Task("sid", "voxceleb1", "speaker identification"),
        Task("er", "emotion", "emotion recognition", folds=5),
        _hear("HearESC50", "environmental sounds", folds=5),
        _hear("HearBeijingOpera", "Beijing opera percussion", folds=5),
        _hear("HearCremaD", "emotion (CREMA-D)", folds=5),
        _hear("HearFSD", "sound events (FSD50K)", metric="mAP"),
        _hear("HearGSC5hr", "speech commands, 5 hours"),
        _hear("HearGtzan", "music genre", folds=10),
        _hear("HearGtzanMusicSpeech", "music or speech", folds=5),
        _hear("HearGunshot", "gunshot location", folds=7),
        _hear("HearLibriCount", "number of speakers", folds=5),
        _hear("HearNsynth5hr", "pitch, 5 hours", metric="pitch_acc"),
        _hear("HearStroke", "mridangam strokes", folds=5),
        _hear("HearTonic", "mridangam tonics", folds=5),
        _hear("HearVocal", "vocal imitations", folds=3, metric="mAP"),
        _hear("HearVoxLingual", "spoken language", folds=5),
    )
}
_CTC = (
    "its CTC loss needs more steps than labels, which SSLAM's steps of 160 ms do not "
    "give: s3prl would count the loss as 0"
)
_FRAMES = "it needs a label every 10 to 25 ms, and SSLAM has steps of 160 ms"
REFUSED = {
    **dict.fromkeys(("asr", "pr", "sf", "ctc", "SuperbASR", "SuperbPR"), _CTC),
    **dict.fromkeys(("se", "ss", "sd", "HearDcase2016Task2", "HearMaestro"), _FRAMES),
}


def parse_tasks(words: Sequence[str]) -> dict[str, Path]:
    """Folders of the data by task, from words TASK=DIR.

    Raises:
        ValueError: A word of another form, an unknown task, one that cannot be learnt
            at SSLAM's resolution, or one that is given twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if name in REFUSED:
            raise ValueError(f"task {name} cannot be learnt here: {REFUSED[name]}")
        if name not in TASKS:
            raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
        if not sign or not folder:
            raise ValueError(f"task {name} needs its data: {name}=DIR, got {word!r}")
        if name in found:
            raise ValueError(f"task {name} is given twice")
        found[name] = Path(folder).expanduser()
    return found


def fold_numbers(task: Task) -> tuple[int, ...]:
    """The folds as s3prl counts them: IEMOCAP's from 1, HEAR's from 0."""
    return tuple(range(task.folds)) if task.hear else tuple(range(1, task.folds + 1))


def parse_steps(words: Sequence[str], tasks: Iterable[str]) -> dict[str, int]:
    """Updates by task from words N (for all tasks, key "") and TASK=N.

    Raises:
        ValueError: A word of another form, or a task that is not asked for.
    """
    steps: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not number.isdigit() or int(number) < 1:
            raise ValueError(f"--steps takes N or TASK=N from 1 on, got {word!r}")
        if name and name not in tasks:
            raise ValueError(f"--steps names {name}, which --tasks does not")
        steps[name] = int(number)
    return steps

"""Checks around parts of s3prl where it goes on in silence and learns nothing.

`add` puts them on a module of s3prl right after it was executed.
"""

import fcntl
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TextIO

ENOUGH_CLIPS = 16  # labels against frames are judged on so many


def check_learnable(
    downsample_rate: int,
    num_samples: Sequence[int],
    num_labels: Sequence[int] | None = None,
) -> None:
    """Refuse clips that s3prl would train on without learning anything.

    Args:
        downsample_rate: Samples per step of the upstream (2560 for sslam).
        num_samples: Samples of each clip, at 16 kHz.
        num_labels: Labels of each clip where the loss is CTC.

    Raises:
        ValueError: A clip that gets no step in run_downstream (its features would be
            NaN); or, with CTC, more than half of the clips with more labels than steps
            (s3prl's loss would be 0 for them).
    """
    empty = [n for n in num_samples if round(n / downsample_rate) == 0]
    if empty:
        raise ValueError(_no_steps(min(empty), downsample_rate, len(empty)))
    if num_labels is None:
        return
    pairs = list(zip(num_samples, num_labels))
    lost = [(n, m) for n, m in pairs if round(n / downsample_rate) < m]
    if 2 * len(lost) > len(pairs):
        samples, labels = lost[0]
        steps = round(samples / downsample_rate)
        raise ValueError(_too_many_labels(len(lost), len(pairs), labels, steps))


def _no_steps(samples: int, rate: int, clips: int) -> str:
    return (
        f"{clips} clip(s) get no step at {rate} samples per step, the shortest has "
        f"{samples} samples: leave clips up to {rate // 2} samples out, pad them, or "
        "raise upsample (8 gives 320 samples per step)"
    )


def _too_many_labels(lost: int, clips: int, labels: int, steps: int) -> str:
    return (
        f"CTC cannot learn {lost} of {clips} clips, for example {labels} labels in "
        f"{steps} steps, and s3prl would count their loss as 0: raise upsample (8 "
        "gives 320 samples per step), take longer units (BPE) or another upstream"
    )


def add(module: ModuleType) -> None:
    """Put the guards on a module of s3prl; again is harmless."""
    guard = _GUARDS.get(module.__name__)
    if guard is not None and not hasattr(module, "_sslam_guarded"):
        guard(module)
        module._sslam_guarded = True


def _guard_features(module: ModuleType) -> None:
    """Clips without a step are an error, not NaN (run_downstream)."""
    cut = module.Featurizer.tolist

    @functools.wraps(cut)
    def tolist(self, paired_wavs, paired_feature):
        check_learnable(self.downsample_rate, [len(wav) for wav in paired_wavs])
        return cut(self, paired_wavs, paired_feature)

    module.Featurizer.tolist = tolist


def _guard_ctc(class_name: str, attribute: str):
    """More labels than steps is an error in the first batches, not a loss of 0."""

    def guard(module: ModuleType) -> None:
        cls = getattr(module, class_name)
        build = cls.__init__

        @functools.wraps(build)
        def init(self, *args, **options):
            build(self, *args, **options)
            getattr(self, attribute).register_forward_pre_hook(_LabelCounter())

        cls.__init__ = init

    return guard


class _LabelCounter:
    """Forward hook of a CTC loss that judges its first clips."""

    def __init__(self):
        self.clips, self.lost = 0, 0

    def __call__(self, loss, arguments) -> None:
        """Arguments of torch.nn.CTCLoss with targets (B, labels)."""
        from espnet2_sslam.integrations.espnet import missing_frames

        if self.clips >= ENOUGH_CLIPS:
            return
        _, targets, steps, labels = arguments
        missing = missing_frames(targets.cpu(), labels.cpu(), steps.cpu())
        self.clips += len(missing)
        self.lost += int((missing > 0).sum())
        if self.clips >= ENOUGH_CLIPS and 2 * self.lost > self.clips:
            worst = int(missing.argmax())
            example = int(labels[worst]), int(steps[worst])
            raise ValueError(_too_many_labels(self.lost, self.clips, *example))


def _guard_resampling(module: ModuleType) -> None:
    """A half-resampled HEAR corpus is an error or made again, never used.

    Threads instead of processes: what `compat` fills in is not there in joblib's.
    """
    module.Parallel = functools.partial(module.Parallel, backend="threading")
    resample = module.resample_hear_corpus

    @functools.wraps(resample)
    def whole(task_dir, target_sr=16000, num_workers=6):
        source, target = Path(task_dir) / "48000", Path(task_dir) / str(target_sr)
        lock = target.with_name(f".{target_sr}.unfinished")
        # The folder first: it is there and unfinished only while the lock is there too.
        if source.is_dir() and (not target.is_dir() or lock.exists()):
            with open(lock, "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # folds may run side by side
                if os.fstat(file.fileno()).st_size:  # a run was killed
                    shutil.rmtree(target, ignore_errors=True)
                if not target.is_dir():
                    file.write("being written\n")
                    file.flush()
                    with _nothing_on_failure(target, file):
                        resample(task_dir, target_sr=target_sr, num_workers=num_workers)
        elif not target.is_dir():
            resample(task_dir, target_sr=target_sr)  # says what is missing
        _check_resampled(source, target)

    module.resample_hear_corpus = whole


@contextmanager
def _nothing_on_failure(target: Path, lock: TextIO) -> Iterator[None]:
    """Remove the folder when the block fails, and what the lock says in any case."""
    try:
        yield
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        lock.truncate(0)  # for those who wait for it
        os.unlink(lock.name)


def _check_resampled(source: Path, target: Path) -> None:
    """Raise a ValueError if the target lacks files of the source."""
    wanted = {p.relative_to(source) for p in source.glob("*/*.wav")}
    lacking = [path for path in sorted(wanted) if not (target / path).is_file()]
    if lacking:
        raise ValueError(
            f"{target} lacks {len(lacking)} of {len(wanted)} files, for example "
            f"{lacking[0]}: delete the folder and run again"
        )


_GUARDS = {
    "s3prl.upstream.interfaces": _guard_features,
    "s3prl.problem.common._hear_util": _guard_resampling,
    "s3prl.downstream.asr.expert": _guard_ctc("DownstreamExpert", "objective"),
    "s3prl.downstream.ctc.expert": _guard_ctc("DownstreamExpert", "objective"),
    "s3prl.task.speech2text_ctc_task": _guard_ctc("Speech2TextCTCTask", "criterion"),
}

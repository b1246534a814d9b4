"""Which plots a record gives, and where they go."""

from pathlib import Path

from espnet2_sslam.results.panels import draw_panel
from espnet2_sslam.results.plots import plot_per_class, plot_training
from espnet2_sslam.results.record import Record
from espnet2_sslam.results.series import all_series, plot_series, write_series_csv


def draw_figures(record: Record, folder: Path) -> list[tuple[str, Path]]:
    """Draw all plots into a folder; returns (caption, file)."""
    return [
        *_training(record, folder),
        *_series(record, folder),
        *_per_class(record, folder),
        *_clip(record, folder),
    ]


def _training(record: Record, folder: Path) -> list[tuple[str, Path]]:
    """Draw the training curves: both phases together, unless there are several tags."""
    tags = {(phase, tag) for phase, tag, _ in record.pretraining}
    together = len(tags) == len({phase for phase, _ in tags})
    drawn = []
    for group in [sorted(tags)] if together else [[one] for one in sorted(tags)]:
        if not group:
            continue
        runs = {
            (phase, seed): run
            for (phase, tag, seed), run in record.pretraining.items()
            if (phase, tag) in group
        }
        name = "" if together else "_" + "_".join(group[0])
        path = folder / f"pretraining{name}.png"
        plot_training(runs, path)
        what = ", ".join(" ".join(one) for one in group)
        drawn.append((f"Pre-training ({what}): losses and spreads over updates.", path))
    return drawn


def _series(record: Record, folder: Path) -> list[tuple[str, Path]]:
    """Draw mAP over the numbers in the names of test splits, such as degree_1."""
    figures: dict[tuple[str, str], dict] = {}
    for tag, data_set, name, found in all_series(record):
        figures.setdefault((data_set, name), {})[tag] = found
        numbers = folder / f"series_{tag}_{data_set}_{name}.csv"
        write_series_csv(found, name, numbers)
    drawn = []
    for (data_set, name), panels in figures.items():
        path = folder / f"series_{data_set}_{name}.png"
        plot_series(panels, name, path)
        drawn.append((f"mAP over {name}, {data_set}, last checkpoints.", path))
    return drawn


def _per_class(record: Record, folder: Path) -> list[tuple[str, Path]]:
    """Draw the AP of every class for the last checkpoints."""
    drawn = []
    for split in record.splits:
        if split.checkpoint == "last":
            path = folder / f"per_class_ap_{'_'.join(split[:3])}.png"
            plot_per_class(record, split, path)
            what = f"AP per class, {split.data_set} {split.split}"
            drawn.append((f"{split.tag}: {what}.", path))
    return drawn


def _clip(record: Record, folder: Path) -> list[tuple[str, Path]]:
    """Draw the first validation clip as the first model of the last phase meets it."""
    wavs = _first_clips(record.dump / "pretrain" / "valid" / "wav.scp", 2)
    finished = {k: run.path for k, run in record.pretraining.items() if run.finished}
    if not finished or len(wavs) < 2:
        return []
    last = max(phase for phase, _, _ in finished)
    key = min(key for key in finished if key[0] == last)
    path = folder / "clip.png"
    draw_panel(finished[key], wavs, path)
    what = "its partial mixture, the mask" if last == "phase2" else "the mask"
    return [(f"A clip of {last}: {what} and the error of the prediction.", path)]


def _first_clips(wav_scp: Path, count: int) -> list[Path]:
    """Return the first files of a wav.scp, fewer if it has fewer or is missing."""
    lines = wav_scp.read_text().splitlines() if wav_scp.exists() else []
    return [Path(line.split(maxsplit=1)[1]) for line in lines[:count]]

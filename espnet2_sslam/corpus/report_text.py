"""The data report in words and tables."""


def report_text(report: dict) -> str:
    """The text of report.txt: warnings first, then one block for each split."""
    lines = ["Data report", "===========", ""]
    lines += _warnings(report)
    lines += [f"note: {note}" for note in report["notes"]]
    for overlap in report["pretraining_overlaps"]:
        lines.append(
            f"note: {overlap['clips']} clips of {overlap['split']} are heard in "
            "pre-training, without their labels"
        )
    lines += ["", *_split_table(report["splits"]), ""]
    for name, split in report["splits"].items():
        lines += [*_split_block(name, split), ""]
    for name, classes in report["classes"].items():
        lines += [f"{name}: {len(classes)} classes: {' '.join(classes)}", ""]
    fbank = report["fbank"]
    lines.append(
        f"fbank of {fbank['split']}: mean {fbank['mean']:.4f}, std {fbank['std']:.4f} "
        f"over {fbank['num_frames']} frames of {fbank['num_clips']} clips"
    )
    return "\n".join(lines) + "\n"


def warnings(report: dict) -> list[str]:
    """What makes results doubtful, one line each."""
    found = [
        f"LEAK: {leak['clips']} clips of {leak['split']} have the same audio as "
        f"clips of {leak['train']}, for example {leak['examples'][0]}"
        for leak in report["leaks"]
    ]
    duplicates = report["duplicates"]
    if duplicates["contradicting_labels"]:
        files = ", ".join(duplicates["contradicting_examples"][0])
        found.append(
            f"LABELS: {duplicates['contradicting_labels']} times the same audio has "
            f"different labels, for example {files}"
        )
    if duplicates["groups"]:
        files = ", ".join(duplicates["examples"][0])
        found.append(
            f"DUPLICATES: {duplicates['groups']} times several files hold the same "
            f"audio, for example {files}"
        )
    for name, split in report["splits"].items():
        missing = split.get("classes_without_positives")
        if missing:
            found.append(f"NO POSITIVES in {name}: {' '.join(missing)}")
        compared = split["compared"]
        if compared["differences"]:
            source = compared["expected"]["source"]
            differences = "; ".join(compared["differences"])
            found.append(f"DIFFERENT in {name}: {differences} ({source})")
    return found


def _warnings(report: dict) -> list[str]:
    """The warnings as marked lines."""
    found = warnings(report)
    return [f"!!! {line}" for line in found] or ["no duplicates, no leaks"]


def _split_table(splits: dict) -> list[str]:
    """One line for each split."""
    rows = [("split", "listed", "missing", "usable", "left out", "warned", "copies")]
    rows[0] += ("hours", "shortest", "mean", "longest [s]")
    for name, split in splits.items():
        counts = (
            split["listed"],
            split["missing"],
            split["usable"],
            sum(split["left_out"].values()),
            sum(split["warnings"].values()),
            split["duplicates"],
        )
        seconds = (f"{split['seconds'][key]:.2f}" for key in ("min", "mean", "max"))
        rows.append((name, *map(str, counts), f"{split['hours']:.3f}", *seconds))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row, widths)][1:]
        )
        for row in rows
    ]


def _size_lines(split: dict) -> list[str]:
    """How the size of a split compares with the real corpus, and what is missing."""
    lines = []
    compared = split["compared"]
    if compared["expected"] is not None:
        clips, source = compared["expected"]["clips"], compared["expected"]["source"]
        if compared["is_part"]:
            lines.append(f"a part of the corpus, which has {clips} clips ({source})")
        elif not compared["differences"]:
            lines.append(f"as many clips and classes as the corpus has ({source})")
    if split["missing"]:
        lines.append(f"missing: {split['missing']} clips, see missing.csv")
    return lines


def _split_block(name: str, split: dict) -> list[str]:
    """Details of one split."""
    lines = [name, "-" * len(name), *_size_lines(split)]
    for title in ("left_out", "warnings"):
        for category, count in sorted(split[title].items()):
            lines.append(f"{title.replace('_', ' ')}: {category}: {count}")
    edges = split["seconds_histogram"]["edges"]
    counts = split["seconds_histogram"]["counts"]
    bins = zip(edges, [*edges[1:], None], counts)
    lines.append(
        "durations: "
        + ", ".join(
            (f"{low}-{high} s: {n}" if high else f"from {low} s: {n}")
            for low, high, n in bins
            if n
        )
    )
    if "label_counts" in split:
        per_clip = split["labels_per_clip"].items()
        lines.append("labels per clip: " + ", ".join(f"{n}: {c}" for n, c in per_clip))
        if split["classes_with_one_positive"]:
            rare = " ".join(split["classes_with_one_positive"])
            lines.append(f"in one clip only: {rare}")
        counts = split["label_counts"].items()
        lines.append("clips per label: " + ", ".join(f"{k} {c}" for k, c in counts))
    lines.append(f"sha256 of ids, audio and labels: {split['content_sha256']}")
    return lines

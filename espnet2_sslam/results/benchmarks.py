"""Several benchmarks in one table."""

from pathlib import Path

from espnet2_sslam.machine import environment
from espnet2_sslam.results import paper, tables
from espnet2_sslam.results.record import Record, collect
from espnet2_sslam.results.summary import Cell, models_present, summarise
from espnet2_sslam.store import write_text

LEGEND = (
    "In percent: mean ± standard deviation over the seeds (none for one seed), of the "
    "model after the last epoch; in brackets that of the epoch with the best score on "
    "validation. * where this was chosen on the test clips, as the data set has no "
    "other. RESULTS.md of each benchmark has intervals, classes, data, hardware, hours."
)


def write_benchmarks(
    folders: list[tuple[Path, Path]],
    output: Path,
    *,
    models: tuple[str, ...],
    seeds: list[int] | None = None,
) -> int:
    """Write one table of all benchmarks and return its number of rows.

    Args:
        folders: (experiment, dump) of each benchmark.
        output: Markdown file.
        models, seeds: What should be there; what is not is called missing.

    Raises:
        ValueError: nothing was scored, or scores do not belong to their labels.
    """
    rows: list[list[str]] = []
    for expdir, dump in folders:
        record = collect(expdir, dump, seeds=seeds, models=models)
        rows += _rows(record, models)
    made = tables.markdown(["what", "value"], environment().items())
    header = ["data set", "evaluation", "measure", *models, "published"]
    known = paper.load()["sources"]
    cited = [name for name in known if any(f"({name})" in row[-1] for row in rows)]
    parts = ["# Benchmarks", made, tables.markdown(header, rows), LEGEND]
    parts += ["\n".join(f"- {name}: {known[name]}" for name in cited)] if cited else []
    write_text(Path(output), "\n\n".join(parts) + "\n")
    return len(rows)


def _short(cell: Cell) -> str:
    """Return mean and spread of a cell in percent."""
    if not cell.values or cell.incomplete:
        return tables.show(cell)
    spread = "" if cell.spread is None else f" ± {100 * cell.spread:.1f}"
    return f"{100 * cell.mean:.1f}{spread}"


def _rows(record: Record, models: tuple[str, ...]) -> list[list[str]]:
    """Return a row for each tag and test split of one benchmark."""
    rows = []
    for tag in record.tags:
        for data_set, line in record.data_sets.items():
            metric = tables.main_metric(line.task)
            published = paper.all_numbers(data_set, metric, record.kind(tag)) or "-"
            for test in line.tests:
                split = Path(test).name
                name = data_set if len(line.tests) == 1 else f"{data_set}, {split}"
                cells = []
                for model in models:
                    where = (record.scores, tag, model, data_set, split)
                    last, best = (
                        summarise(*where, checkpoint, metric)
                        for checkpoint in ("last", "best")
                    )
                    known = model in models_present(record.scores, tag)
                    star = "*" if test == line.valid else ""
                    text = f"{_short(last)} ({_short(best)}{star})"
                    cells.append(text if known and last.values else "missing")
                rows.append([name, tag, metric, *cells, published])
    return rows

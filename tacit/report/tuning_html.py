"""The report of a search as one HTML page: self-contained, without scripts, as that of a run.

Guarantees:
    The page says what the choice cost: that the data are public, the epsilon of the choice, or that nobody counted it.
"""

from __future__ import annotations

from datetime import UTC

from tacit.report.html import MARKS, Chart, pages, percent
from tacit.report.html import seconds as seconds_text
from tacit.report.sweep_html import drawn
from tacit.report.tuning_plots import number_chart, progress_chart, word_chart
from tacit.report.tuning_record import TuningRecord
from tacit.report.wording import metric_text, upper, value_text

_DAY, _MINUTE = "%Y-%m-%d", "%Y-%m-%d %H:%M UTC"  # when a counted search ended says how long it took
MOST_ROWS = 200
MOST_VALUES = 26  # of a key that has no numbers: one letter each


def render_tuning(record: TuningRecord) -> str:
    """The page as text.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
    """
    environment = pages()
    environment.filters.update(
        metric=metric_text,
        upper=upper,
        seconds=seconds_text,
        said=lambda value: value_text(value, 4),
        percent=percent,
    )
    return environment.get_template("tuning.html.j2").render(
        record=record,
        marks=MARKS,
        started=f"{record.started.astimezone(UTC):{_DAY if record.selection else _MINUTE}}",
        progress=_progress(record),
        keys=[chart for key in record.space if (chart := _key(record, key)) is not None],
        rows=record.trials[:MOST_ROWS],
        rows_left_out=max(0, len(record.trials) - MOST_ROWS),
        importances=sorted(record.importances.items(), key=lambda pair: -pair[1]),
    )


def _progress(record: TuningRecord) -> Chart | None:
    if not record.found:
        return None
    svg = progress_chart([t.value for t in record.trials], up=drawn(record.metric), lower=record.lower)
    return Chart(f"{record.metric}, trial by trial", svg)


def _key(record: TuningRecord, key: str) -> tuple[Chart, list[tuple[str, str]]] | None:
    """A key's chart, and what its letters stand for."""
    found, best, up = record.found, record.best, drawn(record.metric)
    if not found or best is None or best.value is None:
        return None
    name, title = f"key{list(record.space).index(key)}", f"{record.metric} by {key}"
    tried = {repr(t.values[key]): t.values[key] for t in found}
    numbers = [v for v in tried.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    heights = [t.value for t in found if t.value is not None]
    if len(numbers) == len(tried):
        xs = [float(t.values[key]) for t in found]
        place = next(i for i, t in enumerate(found) if t.name == best.name)
        few = sorted(map(float, numbers)) if len(numbers) <= 6 else []
        log = key in record.logarithmic or (min(xs) > 0 and bool(few) and max(xs) / min(xs) >= 20)
        return Chart(title, number_chart(name, xs, heights, place, up=up, log=log, ticks=few)), []
    words = sorted(tried, key=lambda word: (len(word), word))[:MOST_VALUES]
    letters = [chr(ord("A") + number) for number in range(len(words))]
    columns = [
        (letter, [t.value for t in found if repr(t.values[key]) == word and t.value is not None])
        for letter, word in zip(letters, words, strict=True)
    ]
    at = words.index(repr(best.values[key])) if repr(best.values[key]) in words else 0
    svg = word_chart(name, columns, best.value, at, up=up)
    return Chart(title, svg), [(c, value_text(tried[w], 4)) for c, w in zip(letters, words, strict=True)]

"""The model card: what a model is, what it was trained on, how good it is and for whom, and what is left to people.

After Mitchell et al., "Model cards for model reporting" (FAccT 2019). Every sentence is made from the run's record;
what no record can know (what the model is for, who answers for it) is a line to be filled in by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any, Final, NamedTuple

from tacit.learning import SYNTHESIS
from tacit.metric_names import lower_is_better
from tacit.report import compare
from tacit.report.record import Metrics, Outcomes, RunRecord
from tacit.report.statement import Section, document, first_verdict
from tacit.report.storage import write_text

FILE: Final = "model-card.md"
PRIVACY: Final = "Privacy"
SIGN_OFF: Final = (
    "Intended use",
    "Not to be used for",
    "Checked on data of our own (which, when, result)",
    "Approved by (name and function)",
    "Place and date",
    "Signature",
)
MOST_COLUMNS: Final = 60
FEW_ROWS: Final = 100


class Part(NamedTuple):
    """One section, and whether it holds figures of the model's quality."""

    section: Section
    figures: bool = False


def model_card(record: RunRecord) -> str:
    """The card as Markdown that also reads as plain text.

    Guarantees:
        A model card says NOT PRIVATE where its run is, and is signed by nobody but a person.
    """
    return document(title(record), [part.section for part in parts(record)], "Sign-off", SIGN_OFF)


def write_model_card(record: RunRecord, path: Path) -> None:
    """Writes the card (model-card.md)."""
    write_text(model_card(record), path)


def title(record: RunRecord) -> str:
    """The heading, which begins with NOT PRIVATE where that is so."""
    return f"{'' if record.is_private else 'NOT PRIVATE - '}Model card: {record.name}"


def parts(record: RunRecord) -> list[Part]:
    """The card, section by section."""
    found = [
        Part(_model(record)),
        Part(_data(record)),
        Part(_columns(record)),
        Part(_quality(record), figures=True),
        Part(_groups(record), figures=True),
        Part(Section(PRIVACY, (*first_verdict(record), "The whole statement is in privacy-statement.md."))),
        Part(_limits(record), figures=True),
        Part(_files(record)),
    ]
    return [part for part in found if part.section.sentences or part.section.points]


def _model(record: RunRecord) -> Section:
    task, training = record.experiment.get("task") or {}, record.experiment.get("training") or {}
    kind = str(task.get("kind", "not named"))
    strategy = (record.experiment.get("strategy") or {}).get("name", "not named")
    model = task.get("model") or {}
    own = ":" in kind
    points = [
        ("Task", kind),
        ("Architecture", "the task's own" if own else architecture(model)),
        ("Trained", f"{record.started.astimezone(UTC):%Y-%m-%d}, {record.outcome}, run {record.run_id}"),
        (
            "How",
            f"{len(record.rounds)} rounds over {len(record.labels)} sites, strategy {strategy}, "
            f"{training.get('local_steps', '?')} steps of {training.get('optimizer', '?')} at each site in a round",
        ),
        ("Software", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
    if (median := record.timings.get("prediction")) is not None:
        most = record.timings.get("prediction_p95", median)
        told = f"{1000 * median:.2g} ms, 95 of 100 within {1000 * most:.2g} ms, on the machine of this simulation"
        points.append(("Predicting one record by itself", told))
    return Section("The model", (), tuple(points))


def architecture(model: Mapping[str, Any]) -> str:
    """Name and widths of a built-in model, as `[task.model]` has them, in words."""
    name = str(model.get("name", "not named"))
    sizes = tuple(model.get("channels" if name in ("cnn", "cnn1d", "resnet") else "hidden") or ())
    if name in ("rnn", "gru", "lstm", "transformer"):
        sizes = sizes[-1:]  # the others are not used
    return name if name == "logistic" or not sizes else f"{name}, widths {', '.join(map(str, sizes))}"


def _data(record: RunRecord) -> Section:
    data, federation = record.experiment.get("data") or {}, record.experiment.get("federation") or {}
    declared = sum(int(site.get("rows", 0)) for site in federation.get("sites") or ())
    source = str(data.get("source", "not named")) if record.is_simulation else "each site's own"
    points = [("Source", source), ("Sites", str(len(record.labels)))]
    if declared:
        points.append(("Rows to train on, as the sites declared them", str(declared)))
    held = f"{100 * float(data.get('test_fraction', 0)):g} % of each site's rows"
    by = f", the latest by {data['split_by']}" if data.get("split_by") else ""
    if record.is_simulation:
        points.append(("Held out, for the figures below", f"{held}{by}"))
        points.append(("Partition", str((record.experiment.get("partition") or {}).get("kind", "not named"))))
    return Section("The data", (), tuple(points))


def _columns(record: RunRecord) -> Section:
    """What a record is, from the declared schema, which is public."""
    data = record.experiment.get("data") or {}
    schema, arrays = data.get("schema"), data.get("arrays")
    if schema and schema.get("columns"):
        label = (f"{schema['label']} (label)", f"one of {_listed(schema.get('classes', ()))}")
        columns = list(schema["columns"].items())
        points = [label, *((name, _column(column)) for name, column in columns[:MOST_COLUMNS])]
        left = len(columns) - MOST_COLUMNS
        points += [("", f"{left} more columns are in experiment.toml")] if left > 0 else []
        scaling = "by statistics that the sites computed together"
        if schema.get("scaling") != "federated":
            scaling = "by constants that the experiment declares"
        return Section("What it reads", (f"Numbers are scaled {scaling}.",), tuple(points))
    if arrays:
        target = _listed(arrays.get("classes") or ()) or f"{arrays.get('outputs', 1)} numbers"
        if arrays.get("grades"):
            target = f"a score for each item, learned from relevances of 0 to {arrays['grades']}"
        shape = " x ".join(map(str, arrays.get("shape", ())))
        return Section("What it reads", (), (("One record", f"an array of {shape}"), ("Predicted", target)))
    return Section("")


def _column(column: Mapping[str, Any]) -> str:
    if column.get("kind") == "categorical":
        return f"one of {_listed(column.get('categories', ()))}"
    ends = column.get("range")
    text = f"number, {ends[0]:g} to {ends[1]:g}" if ends else "number"
    return f"{text}, as its logarithm" if column.get("transform") == "log" else text


def _listed(names: Any, most: int = 8) -> str:
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _quality(record: RunRecord) -> Section:
    metrics: Metrics = dict(record.final.metrics)
    outcomes = record.outcomes
    if outcomes is not None:
        metrics = {**outcomes.metrics, **metrics}
    if not metrics:
        return Section("Quality", ("No figure of its quality is known to whoever wrote this card.",))
    if record.is_simulation:
        told = "Exact, on the held-out rows of all sites. They are as confidential as the rows."
    else:
        told = "As the server learned them last, of the model that went into that round"
        told += ", with noise." if record.is_private else ", without noise."
    points = [
        (name, f"{value:.4g}{_direction(name)}") for name, value in metrics.items() if value is not None
    ]
    pooled = record.baselines.pooled
    main = compare.metric_names(record)[:1]
    if pooled is not None and main and pooled.metrics.get(main[0]) is not None:
        points.append(
            (
                f"For comparison, {main[0]} of pooled training without privacy",
                f"{pooled.metrics[main[0]]:.4g}",
            )
        )
    return Section("Quality", (told,), tuple(points))


def _direction(name: str) -> str:
    return " (lower is better)" if lower_is_better(name) else ""


def _groups(record: RunRecord) -> Section:
    outcomes = record.outcomes
    if outcomes is None or not outcomes.groups:
        return Section("")
    points = [
        (
            group.name,
            f"{group.records} rows: {_spelled(group.metrics)}"
            if group.records is not None
            else _few(outcomes),
        )
        for group in outcomes.groups
    ]
    points += [
        (f"Largest difference: {name.replace('_', ' ')}", _number(v)) for name, v in outcomes.gaps.items()
    ]
    return Section(f"Quality by {outcomes.column}", (), tuple(points))


def _few(outcomes: Outcomes) -> str:
    noise = ", or than can be told from the noise" if outcomes.noise else ""
    return f"fewer than {outcomes.smallest_group} rows{noise}: not shown"


def _spelled(metrics: Metrics) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in metrics.items())


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _limits(record: RunRecord) -> Section:
    return Section("Limits", (), tuple(("", text) for text in _limit_texts(record)))


def _limit_texts(record: RunRecord) -> Iterator[str]:
    yield "It has learned from these sites alone. Elsewhere, or at a later time, it may be worse: measure it there."
    if record.is_simulation:
        yield "Its sites were simulated on one machine: it is no result of a federation of organisations."
    elif not record.final.metrics:
        yield "The sites sent no metrics, so nobody has measured it on the way."
    if not record.is_private:
        yield "It may reveal single records that it was trained on: no differential privacy was applied."
    tested = [site.test_rows for site in record.final.sites]
    if tested and min(tested) < FEW_ROWS:
        yield f"The smallest site was tested on {min(tested)} rows: a figure of it may well be chance."
    main = compare.metric_names(record)[:1]
    losing = (
        [s for s in compare.per_site(record, main[0]) if s.gain is not None and s.gain < 0] if main else []
    )
    if losing:
        yield f"{len(losing)} of {len(record.final.sites)} sites do better by {main[0]} with a model of their own."
    outcomes = record.outcomes
    if outcomes is None or not outcomes.groups:
        yield "It was not compared between groups of people: whether it treats them alike is not known."
    yield "What it says is no cause: a column that it goes by need not be why something happens."
    yield from record.warnings


def _files(record: RunRecord) -> Section:
    points = (
        (
            "model.safetensors",
            "its arrays; with experiment.toml (and scaling.json, if there) they rebuild it",
        ),
        *_uses(str((record.experiment.get("task") or {}).get("kind", ""))),
    )
    return Section("Files", (), points)


def _uses(kind: str) -> tuple[tuple[str, str], ...]:
    if kind in SYNTHESIS:
        return (("tacit synthesize RUN", "a table of rows that it makes up"),)
    return (
        ("tacit export RUN", "one file for other runtimes, with its preprocessing"),
        ("tacit serve RUN", "predictions over gRPC"),
    )

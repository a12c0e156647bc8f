"""The privacy statement: what a data-protection officer files about one run.

Every sentence is made from the run's record; a sentence that the record does not support is not written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple

from tacit.report import federation
from tacit.report.record import PrivacyEntry, RunRecord
from tacit.report.storage import write_text
from tacit.report.wording import EXPLAINED, RELATIONS, all_not_covered, protected, received, upper

# Two computations of the same epsilon may differ in the last digits; that is no broken promise.
_ROUNDING = 1 + 1e-6

SIGNATURE_LINES = ("Place and date", "Name and function", "Signature")


class Section(NamedTuple):
    """One section: sentences, then points of (term, text); the term may be empty."""

    title: str
    sentences: tuple[str, ...] = ()
    points: tuple[tuple[str, str], ...] = ()


def privacy_statement(record: RunRecord) -> str:
    """The statement as Markdown that also reads as plain text.

    Guarantees:
        A run that is not private says so first.
    """
    return document(title(record), sections(record), "Signature", SIGNATURE_LINES)


def document(heading: str, parts: Iterable[Section], signature: str, signature_lines: Iterable[str]) -> str:
    """Numbered sections as Markdown that also reads as plain text, with lines at the end that people fill in."""
    lines = [f"# {_escaped(heading)}", ""]
    for number, section in enumerate(parts, start=1):
        lines += [f"## {number}. {_escaped(section.title)}", ""]
        lines += [line for sentence in section.sentences for line in (_escaped(sentence), "")]
        lines += [f"- **{_escaped(term)}**: {_escaped(text)}" if term else f"- {_escaped(text)}"
                  for term, text in section.points]  # fmt: skip
        lines += [""] if section.points else []
    lines += [f"## {signature}", ""]
    lines += [line for name in signature_lines for line in (f"{name}: {'_' * 50}", "")]
    return "\n".join(lines)


def write_statement(record: RunRecord, path: Path) -> None:
    """Writes the statement (privacy-statement.md)."""
    write_text(privacy_statement(record), path)


def title(record: RunRecord) -> str:
    """The heading, which begins with NOT PRIVATE where that is so."""
    mark = "" if record.is_private else "NOT PRIVATE - "
    return f"{mark}Privacy statement: {record.name}"


def alarms(record: RunRecord) -> list[str]:
    """What the reader must see before anything else: broken promises, then the record's own warnings.

    But for what stands above them already, that the run is NOT PRIVATE and why.
    """
    texts = []
    for entry in record.privacy:
        asked, promised, spent = entry.target_epsilon, entry.epsilon, entry.epsilon_spent or 0.0
        if math.isfinite(promised) and promised > asked * _ROUNDING:
            texts.append(
                f"Epsilon per {entry.unit} ({upper(promised)}) EXCEEDS what the experiment asked for "
                f"({upper(asked)})."
            )
        if math.isfinite(promised) and spent > promised * _ROUNDING:
            texts.append(
                f"The releases made spent epsilon {upper(spent)} per {entry.unit}, which EXCEEDS the promise "
                f"({upper(promised)})."
            )
    return texts + [w for w in record.warnings if record.is_private or not w.startswith("NOT PRIVATE")]


def sections(record: RunRecord) -> list[Section]:
    """The statement, section by section."""
    parts = [_verdict(record), _run(record)]
    for entry in record.privacy:
        if entry.unit != "none":
            parts += (
                [_promise(entry, record.experiment), _meaning(entry)]
                if math.isfinite(entry.epsilon)
                else [_void(entry)]
            )
    parts += [
        _trust(record),
        _views(record),
        _noise(record),
        _secure_sum(record),
        _members(record),
        _exclusions(record),
        _site_file(record),
        _software(record),
    ]
    return [part for part in parts if part.sentences or part.points]


def _verdict(record: RunRecord) -> Section:
    claims = first_verdict(record)
    return Section("Result", (*claims, *(f"Warning: {text}" for text in alarms(record))))


def first_verdict(record: RunRecord) -> list[str]:
    """The promise in a sentence for each unit; or that there is none, and why."""
    if record.is_private:
        claims = [
            f"This training was differentially private with epsilon at most {upper(entry.epsilon)} and delta "
            f"{upper(entry.delta)}. Protected: {protected(entry.unit, record.experiment)}."
            for entry in record.privacy
            if math.isfinite(entry.epsilon)
        ]
        if len(claims) > 1:
            claims.append("The figures stand side by side, one for each unit; they are not one promise.")
    else:
        claims = ["This run is NOT PRIVATE: epsilon is infinite.", _reason(record)]
    return claims


def _reason(record: RunRecord) -> str:
    if record.seeded_noise:
        return "Its noise was drawn from a seed, so whoever knows the seed can subtract it."
    return (
        "No differential privacy was applied. Updates, sums and models of this run may reveal single records "
        "to whoever receives them."
    )


def _run(record: RunRecord) -> Section:
    data = record.experiment.get("data") or {}
    source = str(data.get("source", "not named in the record")) if record.is_simulation else "each site's own"
    points = [
        ("Run", record.run_id),
        ("Started", f"{record.started.astimezone(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Outcome", record.outcome),
        ("Data", source),
        ("Participants", _participants(record)),
        ("Rounds made", str(len(record.rounds))),
    ]
    simulated = (
        "This was a simulation: the rows of all sites were on one machine, and whoever ran it could read them. What "
        "follows is about what training releases (the updates, their sums and the models), not about that machine."
    )
    return Section("The run", (simulated,) if record.is_simulation else (), tuple(points))


def _participants(record: RunRecord) -> str:
    """How many there are; of virtual clients the population counts, not the one folder that they draw from."""
    population = record.experiment.get("federation", {}).get("population")
    if population is None:
        return f"{len(record.labels)} sites"
    return f"{population['size']} simulated clients of {population['rows']} records"


def _promise(entry: PrivacyEntry, experiment: Mapping[str, Any]) -> Section:
    points = [
        ("Protected", protected(entry.unit, experiment)),
        ("Neighbouring data", _both(RELATIONS[entry.unit], entry.relation)),
        (
            "Epsilon",
            f"{upper(entry.epsilon)} (asked for: {upper(entry.target_epsilon)}), the bound for the whole run",
        ),
        ("Delta", upper(entry.delta)),
        ("Paid for", f"{entry.debits} releases (the planned ones and a reserve for repeated attempts)"),
        ("Accountant", entry.accountant),
        (
            "Noise multiplier",
            f"{entry.noise_multiplier:.4g} times the most that one {entry.unit} can change, derived from epsilon and "
            "delta",
        ),
    ]
    if entry.mechanism:
        points.append(("Mechanism", entry.mechanism))
    if entry.epsilon_replaced is not None:
        other = (
            f"{upper(entry.epsilon_replaced)} at the same delta, where a client contributes something else"
        )
        points.append(("Epsilon for another contribution instead of none", other))
    if entry.max_colluding is not None:
        points.append(("Clients that may collude with the server", f"at most {entry.max_colluding}"))
    if entry.epsilon_spent is None:
        points.append(("Epsilon of what was spent", "each site's own figure, which is in its ledger"))
    else:
        spent = f"{upper(entry.epsilon_spent)} for the releases really made; information, not the promise"
        points.append(("Epsilon of what was spent", spent))
    return Section(f"What is promised, per {entry.unit}", (), tuple(points))


def _both(plain: str, stated: str) -> str:
    return plain if not stated or stated == plain else f"{plain} (in the record: {stated})"


def _meaning(entry: PrivacyEntry) -> Section:
    """Epsilon as a bound on odds and on tests.

    Odds: Kasiviswanathan and Smith 2014. Tests: false alarms f and hits h obey h <= e^epsilon f + delta and
    1 - h >= (1 - delta - f) / e^epsilon (Kairouz, Oh and Viswanath 2015, section 2).
    """
    thing, used, was_used = "record", "one record having been used", "was used"
    if entry.unit == "client":
        thing, used, was_used = "client", "what one client has contributed, if anything,", "contributed"
    factor = math.exp(entry.epsilon) if entry.epsilon < 700 else math.inf
    hits = min(0.01 * factor + entry.delta, 1 - (1 - entry.delta - 0.01) / factor)
    sentences = [
        f"Apart from the allowance delta, everything released can change anybody's odds on {used} "
        f"by a factor of at most e^epsilon = {upper(factor, 3)}, whatever else they know.",
        f"A test that tells from the release whether one given {thing} {was_used}, and is wrong about an "
        f"unused one in 1 of 100 cases, is right about a used one in at most {_percent(hits)} of cases.",
        f"Delta, {upper(entry.delta)}, is the probability that is left out of this bound.",
    ]
    if entry.unit == "record":
        sentences.append(
            "A person with r records: epsilon becomes r times as large, and delta at most "
            "r e^((r-1) epsilon) times."
        )
    if factor > 1000:
        sentences.append(
            "A factor of more than 1000 says little: this epsilon protects hardly anything by itself."
        )
    return Section(f"What epsilon means here, per {entry.unit}", tuple(sentences))


def _percent(share: float) -> str:
    return f"{min(100.0, math.ceil(share * 1000) / 10):g} %"


def _void(entry: PrivacyEntry) -> Section:
    """Privacy was configured, but the claim does not hold."""
    sentences = [f"Privacy per {entry.unit} was configured, and epsilon is infinite all the same. {_VOID}"]
    if entry.epsilon_if_os_noise is not None:
        sentences.append(
            f"With noise from the operating system the same settings would give epsilon "
            f"{upper(entry.epsilon_if_os_noise)} at delta {upper(entry.delta)}. This run may not claim it."
        )
    return Section(f"No promise, per {entry.unit}", tuple(sentences))


_VOID = "Nothing in this run may be published as private."


def _trust(record: RunRecord) -> Section:
    points = [
        (f"Unit {entry.unit}" if len(record.privacy) > 1 else "", entry.trusted) for entry in record.privacy
    ]
    if record.is_simulation:
        points.append(("Simulation", "whoever runs the machine, with all rows"))
    if record.federation is not None and record.secure_aggregation.enabled:
        points.append(("Members and their keys", federation.root_of_trust(record.federation)))
    sentence = (
        "For the promise to hold, these must be trusted:"
        if record.is_private
        else "These see what is not protected:"
    )
    return Section("Who must be trusted", (sentence,), tuple(points))


def _views(record: RunRecord) -> Section:
    """What each party sees in a deployment of this configuration."""
    secure = record.secure_aggregation
    own_noise = any(e.unit == "record" and math.isfinite(e.epsilon) for e in record.privacy)
    if secure.enabled:
        server = "each client's masked update, and the sum over the clients of a round"
    else:
        server = "each client's update by itself" + (", already private" if own_noise else "")
    if not record.is_private:
        server += "; no noise protects what these reveal about single records"
    points = [
        ("Each site", "its own rows, and the model of each round"),
        ("Coordinating server", f"{server}; who takes part, when, and how much is sent"),
        ("Recipients of the final model", received(record.experiment)),
    ]
    if any(item.private_metrics for item in record.rounds):
        noised = "with noise that the budget pays for" if record.is_private else "without noise that protects"
        points.append(("Metrics that the server learned", f"sums over the clients of a round, {noised}"))
    if record.learned is not None:
        points.append(("Outcomes that the server learned", _counts(record)))
    how = "with the noise of the metrics, which pays for it" if record.is_private else "exact"
    points += [(title, f"{what}, {how}") for key, (title, what) in EXPLAINED.items() if getattr(record, key)]
    lead = "In a deployment of this configuration:" if record.is_simulation else "In this run:"
    return Section("What each party sees", (lead,), tuple(points))


def _counts(record: RunRecord) -> str:
    """The counts behind confusion matrix, curves and figures by group, and what they cost."""
    assert record.learned is not None
    by = f" and value of {record.learned.column}" if record.learned.column else ""
    text = f"counts of held-out records by truth and prediction{by}, over all clients of each round"
    if not record.is_private:
        return f"{text}, exact"
    share = (record.experiment["privacy"].get("record") or {}).get("metrics_share", 0.0)
    return (
        f"{text}, each with noise of standard deviation {record.learned.noise:.3g}; with the metrics they cost at most "
        f"{share:g} of epsilon, which the figures above include"
    )


def _noise(record: RunRecord) -> Section:
    if record.seeded_noise:
        seeded = "All noise was drawn from the run's seed. It can be reproduced and so protects nothing."
        return Section("How the noise was made", (seeded,))
    units = {entry.unit for entry in record.privacy if math.isfinite(entry.epsilon)}
    made = []
    if "record" in units:
        made.append(
            "Each site draws the records of a training step and adds Gaussian noise to the step before "
            "anything leaves the site."
        )
    if "client" in units:
        central = record.experiment["privacy"]["client"].get("noise") == "central"
        made.append(
            "The coordinating server adds the noise, after the clients clipped their updates."
            if central
            else "Each client adds its share of the noise to its own update before it is masked and summed."
        )
        if record.experiment.get("strategy", {}).get("name") == "dp_ftrl":
            made.append(
                "It is correlated over rounds: each takes back part of what the rounds before have added, so the "
                "server keeps the noise of the last rounds while the run goes on."
            )
    if made:
        made.append(
            "The keys of the noise come from the operating system's generator, never from the run's seed."
        )
    return Section("How the noise was made", tuple(made) or ("No noise was added.",))


def _secure_sum(record: RunRecord) -> Section:
    secure = record.secure_aggregation
    if not secure.enabled:
        sentence = "Off: the coordinating server receives each client's update by itself."
        return Section("Secure aggregation", (sentence,))
    if secure.engine == "ideal":
        sentence = "Simulated: the same integer sum without cryptography. Nothing was masked in this run."
        return Section("Secure aggregation", (sentence,))
    sentences = [
        "On: the coordinating server receives masked updates; the protocol is designed to let it learn only "
        "their sum."
    ]
    sentences.append(
        "It is designed to hold when the server lies, as long as no more members collude with it than the "
        "stated number. No outside cryptographer has reviewed it."
    )
    points = [("Protocol", secure.protocol)]
    points += [("Word width", f"{secure.bits} bits")] if secure.bits is not None else []
    points += [("Threshold", f"{secure.threshold} clients")] if secure.threshold is not None else []
    return Section("Secure aggregation", tuple(sentences), tuple(points))


def _members(record: RunRecord) -> Section:
    if record.federation is None:
        return Section("")
    return Section("What the members have agreed on", (), federation.agreed(record.federation))


def _site_file(record: RunRecord) -> Section:
    if record.is_simulation:
        return Section("")
    return Section("For a site's own file", federation.site_file(record))


def _exclusions(record: RunRecord) -> Section:
    lead = (
        "The promise is not about:"
        if record.is_private
        else "Nothing is covered. Besides that, no run of this kind covers:"
    )
    return Section("What is not covered", (lead,), tuple(("", text) for text in all_not_covered(record)))


def _software(record: RunRecord) -> Section:
    return Section("Software", (), tuple(record.versions.items()))


def _escaped(text: str) -> str:
    """One line without control characters, in which Markdown and HTML see no markup of their own."""
    return re.sub(r"([\\`*<\[])", r"\\\1", plain(text))


def plain(text: str) -> str:
    """One line without control characters."""
    return " ".join(_printable(text).split())


def _printable(text: Iterable[str]) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)

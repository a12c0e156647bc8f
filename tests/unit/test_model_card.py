"""The model card says what the record knows, and leaves to people what only they can know."""

from pathlib import Path

import pytest

from tacit.report.html import render_html
from tacit.report.model_card import SIGN_OFF, architecture, model_card, write_model_card
from tacit.report.record import ColumnShares, ConceptShares, Final, GroupResult, Outcomes, RunRecord
from tacit.report.statement import privacy_statement
from tests.unit.report_records import deployed, run_record, seeded

OUTCOMES = Outcomes(
    classes=("good", "bad <b>"),
    confusion=((70.0, 5.0), (6.0, 19.0)),
    metrics={"accuracy": 0.89, "ece": 0.0312},
    roc=((0.0, 0.1, 1.0), (0.0, 0.8, 1.0)),
    precision_recall=((0.0, 1.0), (1.0, 0.5)),
    reliability=((0.25, 0.75), (0.3, 0.7)),
    column="sex",
    groups=(
        GroupResult(name="f", records=60, metrics={"accuracy": 0.9, "selected": 0.2, "recall": 0.7}),
        GroupResult(name="m", records=40, metrics={"accuracy": 0.85, "selected": 0.35, "recall": 0.8}),
        GroupResult(name="others"),
    ),
    gaps={"demographic_parity": 0.15},
    smallest_group=20,
)
SCHEMA = {
    "label": "default",
    "classes": ["good", "bad"],
    "columns": {
        "age": {"kind": "numeric", "range": [18, 100]},
        "sex": {"kind": "categorical", "categories": ["f", "m"]},
    },
}


def with_outcomes(record: RunRecord, learned: bool = False) -> RunRecord:
    experiment = {**record.experiment, "data": {**record.experiment.get("data", {}), "schema": SCHEMA}}
    final = record.final if learned else Final(**{**dict(record.final), "outcomes": OUTCOMES})
    told = OUTCOMES.model_copy(update={"noise": 4.25, "round": 9}) if learned else None
    return record.model_copy(update={"experiment": experiment, "final": final, "learned": told})


def test_a_card_says_what_the_model_reads_how_good_it_is_and_for_whom() -> None:
    card = model_card(with_outcomes(run_record()))
    for words in (
        "**age**: number, 18 to 100",
        "**sex**: one of f, m",
        "**default (label)**: one of good, bad",
        "**ece**: 0.0312 (lower is better)",
        "**f**: 60 rows: accuracy 0.900, selected 0.200, recall 0.700",
        "**others**: fewer than 20 rows: not shown",
        "demographic parity**: 0.150",
        "epsilon at most",
        "simulated on one machine",
    ):
        assert words in card
    assert "not compared between groups" not in card
    assert "not compared between groups" in model_card(run_record())


def test_a_model_card_says_not_private_where_its_run_is_and_is_signed_by_nobody_but_a_person() -> None:
    for record in (run_record(private=False), seeded(), deployed(private=False)):
        card = model_card(record)
        assert card.startswith("# NOT PRIVATE - Model card") and "epsilon is infinite" in card
    card = model_card(run_record())
    assert "NOT PRIVATE" not in card
    _, _, blank = card.partition("## Sign-off")
    filled = [line for line in blank.splitlines() if line]
    assert [line.partition(":")[0] for line in filled] == list(SIGN_OFF)
    assert all(set(line.partition(": ")[2]) == {"_"} for line in filled)


def test_a_federations_card_has_what_its_server_learned() -> None:
    card = model_card(with_outcomes(deployed(), learned=True))
    assert "As the server learned them last" in card and "with noise" in card
    assert "or than can be told from the noise: not shown" in card
    assert "simulated" not in card


def test_outcomes_and_card_are_on_the_page_each_with_its_origin() -> None:
    page = render_html(with_outcomes(run_record()))
    section = page[page.index('id="outcomes"') :]
    section = section[: section.index("</section>")]
    assert (
        page[: page.index('id="outcomes"')]
        .rstrip()
        .rpartition("<section")[2]
        .startswith(' data-mark="simulation"')
    )
    assert "bad &lt;b&gt;" in section and "<b>bad" not in section
    for words in ("ROC curve", "Calibration", "Confusion matrix", "too few", "Demographic parity difference"):
        assert words in section
    assert section.count("<svg") == 4
    assert 'id="card"' in page
    learned = render_html(with_outcomes(deployed(), learned=True))
    place = learned.index('id="outcomes"')
    assert learned[:place].rpartition("<section")[2].startswith(' data-mark="private"')
    assert "noise of standard deviation 4.2" in learned


def test_the_statement_says_what_the_counts_cost(tmp_path: Path) -> None:
    text = privacy_statement(with_outcomes(deployed(), learned=True))
    assert "counts of held-out records by truth and prediction and value of sex" in text
    assert "noise of standard deviation 4.25" in text and "of epsilon" in text
    assert "Outcomes that the server learned" not in privacy_statement(deployed())
    write_model_card(run_record(), tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text().startswith("# Model card")


def test_a_record_of_a_federation_holds_no_exact_outcomes() -> None:
    record = deployed()
    fields = {name: getattr(record, name) for name in RunRecord.model_fields}
    with pytest.raises(ValueError, match=r"final\.outcomes"):
        RunRecord(**{**fields, "final": Final(outcomes=OUTCOMES)})
    assert RunRecord(**{**fields, "learned": OUTCOMES}).learned == OUTCOMES


def test_outcomes_that_no_budget_pays_for_cannot_be_recorded() -> None:
    record = deployed()
    budget = {**record.experiment["privacy"]["record"], "metrics_share": 0.0}
    rounds = tuple(item.model_copy(update={"private_metrics": {}}) for item in record.rounds)
    fields = {name: getattr(record, name) for name in RunRecord.model_fields}
    fields |= {"experiment": {**record.experiment, "privacy": {"record": budget}}, "rounds": rounds}
    with pytest.raises(ValueError, match="no budget pays for"):
        RunRecord(**{**fields, "learned": OUTCOMES})


def test_what_noise_has_drowned_is_said_on_the_page_and_in_the_statement() -> None:
    record = with_outcomes(deployed(), learned=True)
    nothing = OUTCOMES.model_copy(
        update={"confusion": (), "metrics": {}, "roc": ((), ()), "precision_recall": ((), ()),
                "reliability": ((), ()), "groups": (), "gaps": {}, "noise": 500.0, "round": 3}
    )  # fmt: skip
    shares = ColumnShares(method="saliency", columns=("age", "sex <i>"), shares=(), noise=2.0, round=3)
    page = render_html(record.model_copy(update={"learned": nothing, "importance": shares}))
    assert "larger than all that was counted" in page and "larger than all that was added up" in page
    told = ColumnShares(method="saliency", columns=("age", "sex <i>"), shares=(0.25, 0.75), round=3)
    page = render_html(record.model_copy(update={"importance": told}))
    section = page[page.index('id="importance"') :]
    assert section.index("sex &lt;i&gt;") < section.index(">age<") and "0.750" in section
    assert page[: page.index('id="importance"')].rpartition("<section")[2].startswith(' data-mark="private"')
    statement = privacy_statement(record.model_copy(update={"importance": shares}))
    assert "Importance of columns that the server learned" in statement


def test_concepts_are_drawn_with_chance_and_noise_and_what_noise_has_drowned_is_said() -> None:
    found = ConceptShares(
        concepts=("old", "rich <i>"), meanings=("age > 65", "amount > 20"), classes=("no", "yes"),
        shares=((None, 0.875), (None, 0.5)), chance=0.18, noise=(None, 0.05), round=3,
    )  # fmt: skip
    page = render_html(deployed().model_copy(update={"concepts": found}))
    section = page[page.index('id="concepts"') :].partition("</section>")[0]
    assert "age &gt; 65" in section and "rich &lt;i&gt;" in section and "0.32 to 0.68" in section
    assert section.count("<tr><td>") == 2 and "0.875" in section and "0.050" in section
    assert "left:82.50%;width:10.00%" in section and "left:32.00%;width:36.00%" in section
    assert "too rarely predicted" in section
    assert page[: page.index('id="concepts"')].rpartition("<section")[2].startswith(' data-mark="private"')
    nothing = found.model_copy(update={"shares": ((None, None),) * 2, "noise": (None, None)})
    page = render_html(deployed().model_copy(update={"concepts": nothing}))
    assert "larger than all that was added up" in page
    statement = privacy_statement(deployed().model_copy(update={"concepts": nothing}))
    assert "Concepts that the server learned of" in statement and "with the noise of the metrics" in statement


def test_a_federations_record_holds_no_exact_concepts() -> None:
    fields = {name: getattr(deployed(), name) for name in RunRecord.model_fields}
    found = ConceptShares(
        concepts=("old",), meanings=("age > 65",), classes=("a", "b"), shares=((0.1, 0.9),), chance=0.18, noise=(0, 0)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"final\.concepts"):
        RunRecord(**{**fields, "final": Final(concepts=found)})


def test_a_federations_record_holds_no_exact_importance() -> None:
    fields = {name: getattr(deployed(), name) for name in RunRecord.model_fields}
    shares = ColumnShares(method="saliency", columns=("age",), shares=(1.0,))
    with pytest.raises(ValueError, match=r"final\.importance"):
        RunRecord(**{**fields, "final": Final(importance=shares)})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("logistic", "logistic"),
        ("mlp", "mlp, widths 9, 7"),
        ("cnn", "cnn, widths 2, 3"),
        ("resnet", "resnet, widths 2, 3"),
        ("gru", "gru, widths 7"),
        ("transformer", "transformer, widths 7"),
        ("vae", "vae, widths 9, 7"),
    ],
)
def test_a_card_states_the_widths_that_the_model_has(name: str, said: str) -> None:
    assert architecture({"name": name, "hidden": [9, 7], "channels": [2, 3]}) == said

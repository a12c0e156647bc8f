"""Text: tokens that nothing is learnt for, the models that read them, and what is said of a bad file."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.bookkeeping import unknown
from client.check import check_kit
from simulations.sources import load_source
from tacit import config, learning
from tacit.data import tokens
from tacit.data.schema import Schema, TextColumn
from tacit.data.tokens import tokenised
from tacit.errors import ConfigError, DataError
from tacit.tasks import Task, load_task
from tacit.tasks.models import build, build_for_text

WORDS = TextColumn(column="note", vocabulary=1000, length=4)
BYTES = TextColumn(column="note", tokens="bytes", length=6)
TOKENS = {"fever": 175, "cough": 823}  # of blake2b, modulo 999
EXPERIMENT = """
name = "notes"
[task]
kind = "text_classification"
model = {name = "embedding", hidden = [4]}
[data]
source = "csv"
path = "PATH"
[data.schema]
label = "urgent"
classes = ["no", "yes"]
split = "split"
text = {column = "note", vocabulary = 1000, length = 4}
"""
ROWS = 'note,urgent,split\n"Fever, cough",yes,train\n,no,train\n"well\ntoday",no,test\n'


def experiment(*changes: str) -> config.Experiment:
    return config.loads(EXPERIMENT, overrides=changes)


def written(folder: Path, text: str = ROWS, name: str = "data.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_words_are_hashed_alike_on_every_machine_cut_and_filled_up() -> None:
    found = tokenised(["Fever, cough", None, "a b c d e", "FEVER! cOuGh?", "—"], WORDS)
    assert found.dtype == np.int64 and found.shape == (5, 4)
    assert found[0].tolist() == found[3].tolist() == [TOKENS["fever"], TOKENS["cough"], 0, 0]
    assert not found[[1, 4]].any() and found[2].all()
    narrow = tokenised(
        [" ".join(map(str, range(500)))], WORDS.model_copy(update={"vocabulary": 3, "length": 500})
    )
    assert set(narrow.ravel().tolist()) == {1, 2}


def test_bytes_are_those_of_utf_8() -> None:
    assert tokenised(["aé", "", "abcdefgh", "éééé"], BYTES).tolist() == [
        [98, 196, 170, 0, 0, 0],
        [0] * 6,
        [98, 99, 100, 101, 102, 103],
        [196, 170] * 3,
    ]
    assert BYTES.num_tokens == 257 and WORDS.num_tokens == 1000


@pytest.mark.parametrize("column", [WORDS, BYTES], ids=["words", "bytes"])
def test_the_tokens_of_a_text_follow_from_it_and_the_schema_alone(column: TextColumn) -> None:
    texts = ["one two", "three", None, "four five six"]
    alone = np.concatenate([tokenised([text], column) for text in texts])
    tokens._number.cache_clear()
    assert (tokenised(texts, column) == alone).all()
    tokens._number.cache_clear()
    assert (tokenised([*["zero one"] * 50, *texts], column)[50:] == alone).all()


def test_a_site_reads_notes_and_classes_of_each_split(tmp_path: Path) -> None:
    task = load_task(experiment())
    assert isinstance(task, Task)
    train, test = (task.read(written(tmp_path), split) for split in ("train", "test"))
    assert train.features.tolist() == [[TOKENS["fever"], TOKENS["cough"], 0, 0], [0, 0, 0, 0]]
    assert (train.targets.tolist(), test.targets.tolist()) == ([1, 0], [0])
    assert test.features.count_nonzero() == 2
    tabs = written(tmp_path, "note\turgent\tsplit\nFever, cough\tyes\ttrain\n", "data.tsv")
    assert task.read(tabs, "train").features.tolist() == [[TOKENS["fever"], TOKENS["cough"], 0, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ROWS.replace("note", "text", 1), r"data.csv:1: the header lacks 'note'"),
        (ROWS.replace(",no,train", ",maybe,train"), r"data.csv:3: column 'urgent': is none of the 2 classes"),
        (ROWS.replace(",no,train", ",,train"), r"data.csv:3: column 'urgent': is empty"),
        (ROWS.replace("no,test", "no,tset"), r"data.csv:4: column 'split': is neither"),
        (ROWS.replace("Fever", "Fever" * 3000), r"data.csv:2: column 'note': has a cell of more than 10000"),
        (ROWS.replace("train", "test"), r"data.csv: no row is left for training"),
        (ROWS.replace(",", ";"), r"data.csv:1: the header lacks .* separated by ';'"),
    ],
)
def test_a_bad_file_is_one_line_with_the_line_and_no_word_of_a_note(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_task(experiment()).read(written(tmp_path, text), "train")
    assert "\n" not in str(caught.value) and "ever" not in str(caught.value)


def test_a_site_is_told_before_the_first_round_what_is_wrong_with_its_notes(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('label = "one"\ndata_set = "one"\n')
    for text, state in ((ROWS, "ok"), (ROWS.replace("yes", "maybe"), "fail")):
        written(tmp_path, text)
        found = check_kit(tmp_path, experiment(), connects=False)
        assert [f.state for f in found if f.what == "schema"] == [state], found
        assert [f.text for f in found if f.what == "data"] == [f"{tmp_path / 'data.csv'}, 3 rows"]


def test_a_simulation_divides_the_rows_with_their_texts(tmp_path: Path) -> None:
    frame, schema = load_source(experiment(f"data.path={written(tmp_path)}").data)
    assert frame["note"].tolist() == ["Fever, cough", None, "well\ntoday"]
    assert schema.text == WORDS.model_copy(update={"column": "note"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.schema.text.vocabulary=none",), r"data\.schema\.text: tokens = \"words\" needs vocabulary"),
        (("data.schema.text.tokens=bytes",), r"tokens = \"bytes\" has 257 of its own"),
        (("data.schema.text.column=urgent",), "cannot be the text too"),
        (("data.schema.text.length=0",), r"data\.schema\.text\.length"),
        (
            ("data.schema.columns={age={kind='numeric', range=[0, 9]}}",),
            "columns and text exclude each other",
        ),
        (("data.schema.missing_rows=drop",), "are for columns, not for text"),
        (("data.schema.text=none",), r"data\.schema\.text: belongs to task\.kind = 'text_classification'"),
        (("task.kind=tabular",), r"data\.schema\.text: belongs to task\.kind"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(changes: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(*changes)


def test_models_of_text_and_others_are_not_taken_for_each_other() -> None:
    with pytest.raises(ConfigError, match='"cnn" reads no text; embedding, transformer do'):
        load_task(experiment("task.model.name=cnn", "task.model.hidden=none")).model()
    with pytest.raises(ConfigError, match=r'"embedding" reads text: set task\.kind'):
        build(learning.Model(name="embedding"), 5, 2)
    bare = config.parse({"name": "x", "task": {"kind": "text_classification"}}, source="")
    with pytest.raises(ConfigError, match=r"data\.schema\.text"):
        load_task(bare)


def padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]))


@pytest.mark.parametrize("name", ["embedding", "transformer"])
def test_what_fills_a_text_up_changes_nothing_and_order_matters_to_attention_alone(name: Any) -> None:
    torch.manual_seed(1)
    model = build_for_text(learning.Model(name=name, hidden=(8,), layers=1 + (name == "transformer")), 20, 3)
    assert unknown(model) == ""
    tokens = torch.randint(1, 20, (5, 6))
    torch.testing.assert_close(model(padded(tokens, 6)), model(padded(tokens, 30)), rtol=1e-4, atol=1e-5)
    same = torch.allclose(model(tokens), model(tokens.flip(1)), atol=1e-5)
    assert same == (name == "embedding")
    empty = model(torch.zeros(2, 6, dtype=torch.int64))
    assert empty.isfinite().all() and torch.equal(empty[0], empty[1])
    learnt = copy.deepcopy(model)
    with torch.no_grad():
        learnt.input.weight[0] += 5.0  # type: ignore[index, union-attr, operator]
    torch.testing.assert_close(learnt(padded(tokens, 30)), model(padded(tokens, 30)), rtol=1e-4, atol=1e-5)


def test_a_schema_of_text_needs_no_column_and_says_which_it_reads() -> None:
    schema = Schema(label="urgent", text=WORDS, site="desk")
    assert (schema.required, schema.optional, schema.numeric) == (("urgent", "note"), ("desk",), frozenset())

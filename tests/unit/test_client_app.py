"""What leaves a site by its `ClientApp`: every record of every reply, and every reason of every refusal.

Longer than 400 lines because each way out of a site has its case here.
"""

import logging
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client import app as client_app
from client import plain
from client.app import app, handlers
from client.evaluation import metric_sums, record_metrics
from client.participant import Run
from client.plain import ClippedUpdate
from tacit.encoding import metric_names
from tacit.encoding import metric_sensitivity as sensitivity
from tacit.errors import ConfigError, Refused
from tacit.privacy.noise import Stream
from tacit.secagg.messages import ConfirmAnswer, DealAnswer, MaskAnswer, SetupAnswer, UnmaskAnswer
from tacit.secagg.ring import packed_size
from tacit.tasks import Records
from tests.unit.client_sites import (
    CANARY,
    DECLARED,
    HEADER,
    LABELS,
    POLICY,
    RECORD,
    SINGLE,
    Round,
    answer,
    context,
    debits,
    experiment,
    message,
    model,
    participant,
    participants,
    rows,
    setup_request,
    write_site,
    write_sites,
)

PLAIN = {"secure_aggregation__enabled": False}
IDEAL = {"secure_aggregation__engine": "ideal"}


@pytest.fixture(scope="module")
def private():
    return experiment()


@pytest.fixture(scope="module")
def arrays(private):
    return model(private)


def contents(reply):
    """Every key of every record of a reply."""
    assert not reply.has_error(), reply.error.reason
    return {name: set(record) for name, record in reply.content.items()}


def test_the_list_of_messages_at_the_top_is_the_list_of_handlers():
    assert set(handlers()) == {
        "query.tacit", "train.default", "train.ideal", *(f"train.tacit{i}" for i in range(5))
    }  # fmt: skip
    for kind in handlers():
        name = kind.removesuffix(".default")
        assert f" {name} " in client_app.__doc__


@pytest.mark.parametrize("kind", ["train.x", "train.tacit5", "evaluate", "query", "evaluate.tacit"])
def test_B21_other_types_of_message_have_no_handler(tmp_path, private, arrays, kind):
    folder = write_site(tmp_path / "north", policy={**POLICY, **SINGLE})
    with pytest.raises(ValueError, match=r"No .* function registered"):
        app(message(kind, arrays), context(folder, private))


@pytest.mark.parametrize("metrics", [False, True])
def test_I21_the_replies_of_a_secure_round_hold_keys_shares_masked_words_and_nothing_else(tmp_path, metrics):
    """Canonical bytes with no room for more, and a masked vector of the public length."""
    share = {"privacy": {"record": {**RECORD, "metrics_share": 0.2}}, "evaluation": {"metrics": True}}
    settings = experiment(**(share if metrics else {}))
    start = model(settings)
    folders = write_sites(tmp_path)
    round_ = Round(participants(Run(settings.to_toml()), folders), start)
    machine = round_.machine

    def phase(number, requests, kind, collect, **more):
        replies = []
        for i, request in requests.items():
            reply = answer(folders[i], settings, f"train.tacit{number}", *more.values(), body=request)
            vector = {"vector": {"words"}} if number == 2 else {}
            assert contents(reply) == {"tacit": {"body"}, **vector}
            body = reply.content["tacit"]["body"]
            replies.append(kind(body))
            collect(body, *([reply.content["vector"]["words"].numpy().tobytes()] if vector else []))
        return replies

    requests = dict.fromkeys(range(3), round_.request)
    for setup in phase(0, requests, SetupAnswer.decode, machine.collect_setup, arrays=start):
        assert setup.entry.counter == 1
    phase(1, machine.deal_requests(), DealAnswer.decode, machine.collect_dealt)
    sizes = []

    def collect(body, vector):
        sizes.append(len(vector))
        machine.collect_masked(body, vector)

    phase(2, machine.mask_requests(), MaskAnswer.decode, collect)
    size = sum(array.size for array in start.values())
    length = size + 1 + (3 if metrics else 0)  # model, weight; accuracy, loss and their number
    assert sizes == [packed_size(length, machine.cohort.parameters.bits)] * 3
    requests = machine.confirm_requests()
    phase(3, requests, lambda body: ConfirmAnswer.decode(body, machine.survivors), machine.collect_confirmed)
    phase(4, machine.unmask_requests(), UnmaskAnswer.decode, machine.collect_unmask)
    assert machine.aggregate().num_clients == 3


@pytest.mark.parametrize("weights", ["equal", "declared"])
def test_I21_a_plain_reply_holds_the_model_and_a_public_weight_and_no_metric_loss_or_count(tmp_path, weights):
    declared = [{"label": label, "rows": n} for label, n in zip(LABELS, (40, 10, 80), strict=True)]
    settings = experiment(**PLAIN, strategy={"weights": weights}, federation={"sites": declared})
    folder = write_site(tmp_path / "north", data=rows(1, train=37), policy=SINGLE)  # 37 rows, 40 declared
    start = model(settings)
    reply = answer(folder, settings, "train", start)
    assert contents(reply) == {"arrays": set(start), "metrics": {"num-examples"}}
    assert reply.content["metrics"]["num-examples"] == {"equal": 1.0, "declared": 0.5}[weights]


def test_I21_the_ideal_sums_vector_has_the_public_weight_too(tmp_path):
    settings = experiment(**IDEAL)
    folder = write_site(tmp_path / "north", data=rows(1, train=37), policy=SINGLE)
    reply = answer(folder, settings, "train.ideal", model(settings))
    assert contents(reply) == {"encoded": {"values"}, "tacit": {"clipped"}}
    assert reply.content["encoded"]["values"].numpy()[-1] == 2**16


def test_I21_metrics_of_a_private_run_are_refused_unless_they_are_paid_for():
    with pytest.raises(ConfigError, match="metrics_share"):
        experiment(evaluation={"metrics": True})


def test_a_metric_sum_leaves_a_site_only_with_the_noise_that_the_plan_paid_for(tmp_path):
    """Through the whole client: what the encoder gets is no exact sum, differs each time, and is debited."""
    share = {"privacy": {"record": {**RECORD, "metrics_share": 0.2}}, "evaluation": {"metrics": True}}
    settings = experiment(**share, **PLAIN)
    folder = write_site(tmp_path / "north", policy=SINGLE)
    start = model(settings)
    client = participant(folder, settings)
    exact = record_metrics(client.run.trainer.model, client.run.task, client.records("test"))
    sent = [dict(answer(folder, settings, "train", start).content["metrics"]) for _ in range(2)]
    assert set(exact) == {"accuracy", "loss", "records"} and exact["records"] == 10.0
    for name, value in exact.items():
        assert len({value, *(metrics[name] for metrics in sent)}) == 3, name
    # Six draws with a standard deviation far above 1: that none is above 1/2 has a chance below 1e-9.
    assert max(abs(metrics[name] - value) for metrics in sent for name, value in exact.items()) > 0.5
    assert [entry.event for entry in debits(folder, "metrics")] == [client.run.plan.metrics_event()] * 2
    assert client.run.plan.metrics_noise_multiplier > 1


def test_without_privacy_metric_sums_are_exact(tmp_path):
    settings = experiment(private=False, **PLAIN, evaluation={"metrics": True})
    folder = write_site(tmp_path / "north", policy=SINGLE)
    start = model(settings)
    client = participant(folder, settings)
    client.run.trainer.model.load_state_dict({name: torch.from_numpy(a) for name, a in start.items()})
    exact = record_metrics(client.run.trainer.model, client.run.task, client.records("test"))
    sent = dict(answer(folder, settings, "train", start).content["metrics"])
    assert sent == pytest.approx({"num-examples": 1.0, **exact}, abs=1e-6)


class Measured:
    """A task that consists of its metrics."""

    metric_names = ("one", "other")

    def __init__(self, one):
        self.one = one

    def metrics(self, outputs, targets):
        return {"one": self.one(outputs), "other": outputs[:, 0] * 0}


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 7.0, -3.0, float("nan"), float("inf"), -float("inf"), 1e38])
def test_one_record_moves_the_metric_sums_by_at_most_their_sensitivity(value):
    task = Measured(lambda outputs: outputs[:, 0])
    records = Records(torch.cat([torch.full((9, 1), 0.5), torch.tensor([[value]])]), torch.zeros(10))
    exact = record_metrics(torch.nn.Linear(1, 1), task, records)  # a model with a device ...
    identity = torch.nn.Sequential(torch.nn.Linear(1, 1))
    torch.nn.init.ones_(identity[0].weight)
    torch.nn.init.zeros_(identity[0].bias)
    more = record_metrics(identity, task, records)
    fewer = record_metrics(identity, task, Records(records.features[:9], records.targets[:9]))
    assert set(exact) == set(more) == {"one", "other", "records"}
    moved = np.array([more[name] - fewer[name] for name in more])
    assert np.linalg.norm(moved) <= sensitivity(task) + 1e-9


@pytest.mark.parametrize("shape", [lambda x: x.mean(), lambda x: x[:, :1], lambda x: x[:3, 0]])
def test_a_metric_that_is_not_one_number_per_record_is_refused(shape):
    records = Records(torch.ones(10, 1), torch.zeros(10))
    with pytest.raises(ConfigError, match="'one' must be one number per record"):
        metric_sums(torch.nn.Linear(1, 1), Measured(shape), records, 1.0, Stream(bytes(32)))


@pytest.mark.parametrize("names", [("a", "a"), ("records",), ("accuracy", "num-examples")])
def test_a_metric_that_would_take_the_place_of_a_count_or_weight_is_refused(names):
    task = Measured(None)
    task.metric_names = names
    with pytest.raises(ConfigError, match="must differ"):
        metric_names(task)


SINGLE_UPDATES = {
    "protocol, whatever the policy": (SINGLE, {}, "single-update"),
    "no secure sum and no permission": ({"require_secure_aggregation": False}, PLAIN, "single-update"),
    "ideal sum and no permission": ({"require_secure_aggregation": False}, IDEAL, "single-update"),
    "no policy at all": (None, PLAIN, "secure-aggregation"),
}


@pytest.mark.parametrize("case", SINGLE_UPDATES)
def test_a_clipped_update_cannot_be_made_at_a_site_whose_policy_does_not_allow_single_updates(
    tmp_path, arrays, case
):
    policy, changes, reason = SINGLE_UPDATES[case]
    settings = experiment(**changes)
    folder = write_site(tmp_path / "north", policy=policy)
    for kind in ("train", "train.ideal"):
        assert answer(folder, settings, kind, arrays).error.reason == f"refused:{reason}"
    client = participant(folder, settings)
    with pytest.raises(Refused):
        ClippedUpdate.of(client, arrays, client.update("run-1", 1, arrays))
    assert not (folder / "ledger").exists()


def test_a_single_update_is_cut_at_the_public_norm_and_shows_nothing_of_itself(tmp_path):
    settings = experiment(
        private=False, **PLAIN, training__learning_rate=50.0, secure_aggregation__update_clip=0.25
    )
    folder = write_site(tmp_path / "north", policy=SINGLE)
    start = model(settings)
    client = participant(folder, settings)
    update = client.update("run-1", 1, start)
    made = ClippedUpdate.of(client, start, update)
    moved = np.concatenate([(made.arrays[name] - start[name]).ravel() for name in start])
    assert np.linalg.norm(moved) == pytest.approx(0.25, abs=1e-5)
    assert repr(made) == "<ClippedUpdate: 2 arrays>"


@pytest.mark.parametrize("changes", [PLAIN, IDEAL, {}], ids=["plain", "ideal", "protocol"])
def test_C4_an_update_that_is_not_finite_never_leaves(tmp_path, changes):
    settings = experiment(private=False, **changes, training__learning_rate=1e38, training__weight_decay=1e10)
    folder = write_site(tmp_path / "north", policy=SINGLE if changes else POLICY)
    start = model(settings)
    kind = {str(PLAIN): "train", str(IDEAL): "train.ideal"}.get(str(changes), "train.tacit0")
    fields = {} if changes else {"body": setup_request(Run(settings.to_toml()), start)}
    reply = answer(folder, settings, kind, start, **fields)
    assert (reply.error.reason, reply.has_content()) == ("refused:unavailable", False)


def test_a_single_update_is_debited_before_it_exists_as_bytes(tmp_path):
    """The ledger is taken away while the site trains: no reply but an error."""
    settings = experiment(**PLAIN)
    client = participant(write_site(tmp_path / "north", policy=SINGLE), settings)
    start = model(settings)
    inner, held = client.run.trainer.gradients, []

    class Taking:
        def fill(self, *arguments):
            held.append(held[0] if held else client.site.ledger())
            inner.fill(*arguments)

    client.run.trainer.gradients = Taking()
    with pytest.raises(Exception, match="in use"):
        plain.update(client, ConfigRecord({"run": "r", "round": 1}), start)
    held[0].close()
    assert debits(client.site.folder) == []


BAD_FILES = {
    "unknown class": HEADER + f"50,1,a,{CANARY},train\n",
    "not a number": HEADER + f"{CANARY},1,a,1,train\n",
    "ragged": HEADER + f"50,1,a,1,train,{CANARY}\n",
    "no such split": HEADER + f"50,1,a,1,{CANARY}\n",
    "empty": "",
    "only held out": HEADER + "50,1,a,1,test\n",
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_K1_of_an_error_nothing_but_a_reason_code_leaves_the_site(
    tmp_path, private, arrays, case, caplog, capfd
):
    """Bad data are this site's own business; the file and line are in its log, and no cell is anywhere."""
    caplog.set_level(logging.DEBUG)
    folder = write_site(tmp_path / "north", data=BAD_FILES[case])
    body = setup_request(Run(private.to_toml()), arrays)
    reply = answer(folder, private, "train.tacit0", arrays, body=body)
    assert (reply.error.reason, reply.has_content()) == ("refused:unavailable", False)
    seen = f"{reply} {caplog.text} {capfd.readouterr()}"
    assert CANARY not in seen and "data.csv" in caplog.text


QUOTING = """
from tacit.tasks.tabular import TabularClassification
class Quoting:
    metric_names = ()
    def __init__(self, **options): pass
    def model(self):
        from torch import nn
        return nn.Linear(2, 2)
    def read(self, path, split):
        raise ValueError(f"could not convert {path.read_text().split()[-1]!r}")
    def loss(self, outputs, targets): return outputs[:, 0]
    def metrics(self, outputs, targets): return {}
"""


def test_K1_an_error_of_a_users_own_code_leaves_no_word_of_itself(
    tmp_path, arrays, monkeypatch, caplog, capfd
):
    """Flower would send the text of an exception to the server."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "quoting_task.py").write_text(QUOTING)
    settings = experiment(**PLAIN, task={"kind": "quoting_task:Quoting"})
    policy = {**SINGLE, "allowed_tasks": ["quoting_task:Quoting"]}
    folder = write_site(tmp_path / "north", data=f"x\n{CANARY}\n", policy=policy)
    start = model(settings)
    reply = answer(folder, settings, "train", start)
    assert (reply.error.reason, reply.has_content()) == ("refused:failed", False)
    assert CANARY not in f"{reply} {caplog.text} {capfd.readouterr()}"
    assert "ValueError in" in caplog.text and "quoting_task.py:10" in caplog.text


def test_a_label_is_all_that_a_question_gets_and_a_folder_that_is_none_says_nothing(tmp_path, private):
    folder = write_site(tmp_path / "north")
    assert contents(answer(folder, private, "query.tacit")) == {"tacit": {"label"}}
    (folder / "site.toml").write_bytes(b"label = '\xff'")
    assert answer(folder, private, "query.tacit").error.reason == "refused:unavailable"
    assert answer(tmp_path / "nowhere", private, "query.tacit").error.reason == "refused:unavailable"


NOT_MESSAGES = {
    "no model": (lambda a: {}, "model"),
    "a model of another kind": (lambda a: {"arrays": ConfigRecord({"x": 1})}, "model"),
    "bytes that are no array": (
        lambda a: {
            "arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY nonsense")})
        },
        "model",
    ),
    "objects": (
        lambda a: {"arrays": ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", pickled())})},
        "model",
    ),
    "an array of eight terabytes": (
        lambda a: {"arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", bomb())})},
        "model",
    ),
    "no fields": (lambda a: {"tacit": ArrayRecord({})}, "fields"),
    "no body": (lambda a: {"tacit": ConfigRecord({"body": "text"})}, "body"),
    "a body of noise": (lambda a: {"tacit": ConfigRecord({"body": b"noise"})}, "encoding"),
}


def pickled():
    import io

    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def bomb():
    import io

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (2 * 10**12,)}
    )
    return file.getvalue() + bytes(8)


@pytest.mark.parametrize("case", NOT_MESSAGES)
def test_a_message_that_is_none_is_refused_with_a_code_and_the_process_goes_on(
    tmp_path, private, arrays, case
):
    spoil, reason = NOT_MESSAGES[case]
    folder = write_site(tmp_path / "north")
    content = {"tacit": ConfigRecord({"body": setup_request(Run(private.to_toml()), arrays)})}
    content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    content |= spoil(arrays)
    if case == "no model":
        del content["arrays"]
    made = message("train.tacit0")
    made.content = RecordDict(content)
    reply = app(made, context(folder, private))
    assert (reply.error.reason, reply.has_content()) == (f"refused:{reason}", False)


def test_an_experiment_that_is_none_is_refused(tmp_path):
    folder = write_site(tmp_path / "north")
    for text in ("not toml", "name = 'x'\nunknown = 1\n", ""):
        assert answer(folder, text, "train.tacit0").error.reason == "refused:unavailable"


def test_K1_no_secret_is_in_the_text_of_any_object(tmp_path, private, arrays):
    client = participant(write_site(tmp_path / "north"), private)
    round_ = Round(
        [client, *participants(client.run, [write_site(tmp_path / n, n) for n in LABELS[1:]])], arrays
    )
    round_.keys().vectors()
    session = client.session()
    state = session.machine._state
    secrets = [state.mask.secret().hex(), bytes(state.own_seed).hex(), repr(bytes(state.own_seed))]
    update = client.update("run-1", 1, arrays)
    shown = " ".join(map(repr, (session, session.machine, state, client, client.run, client.site, update)))
    assert not [secret for secret in secrets if secret in shown]
    # Of the vector no three neighbours. Noise of a standard deviation of hundreds is like the numbers that may be there
    # (sizes, addresses) three times in a row with a chance below 1e-7.
    numbers = f" {' '.join(re.findall(r'-?[0-9]+', shown))} "
    for start in range(len(session.encoded.values) - 2):
        assert f" {' '.join(map(str, session.encoded.values[start : start + 3]))} " not in numbers


def test_an_idle_client_has_not_imported_torch(tmp_path):
    code = "import client.app, sys; print([m for m in ('torch', 'opacus', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_declared_rows_of_these_tests_are_not_the_rows_of_the_files():
    assert rows(1, train=37).count("train") == 37 != DECLARED

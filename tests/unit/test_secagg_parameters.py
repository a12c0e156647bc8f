import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tacit.config import SecureAggregation
from tacit.errors import ConfigError, ProtocolError
from tacit.secagg import client as client_module
from tacit.secagg import server as server_module
from tacit.secagg.client import ClientMachine
from tacit.secagg.encoding import Reader, Writer
from tacit.secagg.members import SERVER, Member
from tacit.secagg.parameters import Rules
from tacit.secagg.server import ServerMachine

C_INT = 1024


def test_the_transition_tables_name_methods_and_reach_the_end():
    for module, machine, first, last in (
        (client_module, ClientMachine, "new", "unmasked"),
        (server_module, ServerMachine, "keys", "done"),
    ):
        reached = {first}
        for _ in module.TRANSITIONS:
            reached |= {after for (phase, _), after in module.TRANSITIONS.items() if phase in reached}
        assert last in reached
        methods = {"receive" if step == "complain" else step for _, step in module.TRANSITIONS}
        assert all(hasattr(machine, name) for name in methods)


# n, c, D -> T, D_eff: the thresholds of the design.
@pytest.mark.parametrize(
    ("n", "c", "dropouts", "threshold", "effective"),
    [
        (3, 1, 0, 3, 0),
        (3, 1, 2, 3, 0),
        (4, 1, 1, 3, 1),
        (5, 1, 1, 4, 1),
        (10, 1, 0, 6, 0),
        (100, 10, 20, 56, 20),
        (100, 33, 50, 67, 33),
        (200, 66, 66, 134, 66),
    ],
)
def test_the_thresholds_follow_from_the_size_of_the_cohort(n, c, dropouts, threshold, effective):
    parameters = Rules(c, dropouts, C_INT).parameters(n)
    assert (parameters.threshold, parameters.max_dropouts, parameters.neighbours) == (
        threshold,
        effective,
        n - 1,
    )
    assert parameters.share_threshold == threshold


def test_a_cohort_without_two_honest_vectors_is_refused():
    for n, c in ((2, 1), (3, 2), (1, 1), (0, 1), (5, 4)):
        with pytest.raises(ConfigError):
            Rules(c, 0, C_INT).parameters(n)
    for bad in (
        {"max_corrupt": 0},
        {"max_dropouts": -1},
        {"c_int": 0},
        {"c_int": 2**25},
        {"noise_multiplier": np.nan},
    ):
        with pytest.raises(ConfigError):
            Rules(**{"max_corrupt": 1, "max_dropouts": 0, "c_int": C_INT, **bad})


def test_B9_a_cohort_outside_the_limits_of_the_federation_is_refused():
    rules = Rules(1, 1, C_INT, min_cohort=5, max_cohort=8)
    assert [n for n in range(3, 12) if _allowed(rules, n)] == [5, 6, 7, 8]
    assert rules.fewest(8) == 7
    assert rules.fewest(5) == 5
    assert _allowed(Rules(1, 1, C_INT, min_cohort=5), 500)
    for limits in ((-1, 0), (0, -1), (6, 5), (3, 0), (4, 9)):  # 3 and 4 cannot lose one and go on
        with pytest.raises(ConfigError):
            Rules(1, 2, C_INT, min_cohort=limits[0], max_cohort=limits[1])


def _allowed(rules, n):
    try:
        return rules.parameters(n).n == n
    except ConfigError:
        return False


def test_B10_rules_are_read_back_whole_and_other_formulas_are_refused():
    rules = Rules(5, 20, C_INT, 1.5, 60, 900)
    written = rules.write(Writer("x")).finish()
    assert Rules.read(Reader(written, "x")) == rules
    for old, new in ((b"tacit-1", b"tacit-0"), (b"+ 1; D_eff", b"+ 0; D_eff"), (b"2^-104", b"2^-040")):
        assert written.count(old) == 1
        with pytest.raises(ProtocolError) as error:
            Rules.read(Reader(written.replace(old, new), "x"))
        assert error.value.reason == "rules"


def test_the_test_switch_does_not_pass_the_wire():
    """Rules without a corrupt member are read, and then are not those that a site has from its own experiment."""
    pair = Rules(0, 0, C_INT, allow_no_corrupt=True)
    assert pair.parameters(2).threshold == 2
    assert Rules.read(Reader(pair.write(Writer("x")).finish(), "x")) == pair
    with pytest.raises(ConfigError):
        Rules(0, 0, C_INT)
    with pytest.raises(ValidationError):
        SecureAggregation(max_corrupt=0)
    assert Rules.of(SecureAggregation()).max_corrupt == 1


def test_a_member_has_an_index_below_the_servers_and_a_label():
    for index, label in ((-1, "a"), (SERVER, "a"), (0, ""), (0, "x" * 1025), (0, "\ud800")):
        with pytest.raises(ProtocolError) as error:
            Member(index, label, bytes(32))
        assert error.value.reason == "member"


def test_every_reason_code_is_in_the_protocol_page():
    root = Path(__file__).parents[2]
    source = "".join(path.read_text() for path in (root / "tacit" / "secagg").glob("*.py"))
    codes = set(re.findall(r'(?:ProtocolError|Refused|__init__)\(\s*"([a-z-]+)"', source))
    assert len(codes) > 20
    page = (root / "docs" / "protocol.md").read_text()
    assert not [code for code in sorted(codes) if f"`{code}`" not in page]

"""The screen for outliers: what it measures, whom it compares with whom, and what it leaves alone."""

import numpy as np
import pytest
from flwr.app import RecordDict

from fedssl.core.slots import Merge, Slot
from fedssl.exchange import protocol
from fedssl.server.outliers import OutlierScreen

protocol.claim_identity(1)

WEIGHTS = {"w": np.zeros(4, np.float32)}
COUNTS = Slot("prior", "server", Merge("uniform"))
SHARES = Slot("shares", "server")
VARIATES = Slot("variates", "server", Merge("uniform", over="population"))
RECORD = {"prior": protocol.UNIFORM_STATE, "shares": protocol.STATE, "variates": protocol.UNIFORM_STATE}  # fmt: skip


def screen_of(*slots, start=1.0, dtype=np.float32):
    """Return a screen for a model of zeros and one array of four numbers in every slot."""
    carried = {protocol.ARRAYS: WEIGHTS, protocol.STATE: {}, protocol.UNIFORM_STATE: {}}
    for slot in slots:
        carried[RECORD[slot.name]][f"{slot.name}/x"] = np.full(4, start, dtype)
    return OutlierScreen(carried, slots, ratio=10)


def passed(screen, *replies, dtype=np.float32):
    """Return which replies of a wave pass; each is (client, all weights) or (client, all weights, slot, all numbers)."""
    sent = [
        protocol.new_message("train", protocol.node_of(client), RecordDict())
        for client in dict.fromkeys(reply[0] for reply in replies)
    ]
    request = {protocol.client_of(message.metadata.dst_node_id): message for message in sent}
    came = []
    for client, weight, *state in replies:
        records = {protocol.ARRAYS: protocol.to_record({"w": np.full(4, weight, np.float32)})}
        if state:
            slot, number = state
            arrays = {f"{slot.name}/x": np.full(4, number, dtype)}
            records[RECORD[slot.name]] = protocol.to_record(arrays)
        came.append(protocol.reply_of(request[client], RecordDict(records)))
    return [not reply.has_error() for reply in screen(sent, came)]


@pytest.mark.parametrize("slot", [SHARES, COUNTS, VARIATES])
def test_the_state_is_measured_in_whichever_record_it_travels(slot):
    """A change of 1 in each of four numbers has length 2; ten times that is 20, a change by 10 in each."""
    honest = [(client, 1.0, slot, 2.0) for client in range(3)]
    assert passed(screen_of(slot), *honest, (3, 1.0, slot, 10.5)) == [True] * 4
    assert passed(screen_of(slot), *honest, (3, 1.0, slot, 11.5)) == [True] * 3 + [False]
    assert passed(screen_of(slot), (3, 1.0, slot, -1e6), *honest) == [False] + [True] * 3


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize(("slot", "passes"), [(SHARES, False), (COUNTS, False), (VARIATES, True)])
def test_no_single_client_makes_counts_negative_but_variates_may_have_any_sign(slot, passes, start):
    replies = [(0, 1.0, slot, 2.0), (1, 1.0, slot, 2.0), (2, 1.0, slot, -0.5)]
    assert passed(screen_of(slot, start=start), *replies) == [True, True, passes]
    replies[1] = (1, 1.0, slot, -0.5)
    assert passed(screen_of(slot, start=start), *replies) == [True] * 3
    assert passed(screen_of(slot, start=-1.0), *replies[::2], (3, 1.0, slot, 1.0)) == [True] * 3


def test_state_of_whole_numbers_has_a_sign_and_no_length():
    def wave(number):
        replies = [(c, 1.0, COUNTS, 2) for c in range(3)]
        screen = screen_of(COUNTS, dtype=np.int64)
        return passed(screen, *replies, (3, 1.0, COUNTS, number), dtype=np.int64)

    assert wave(10**6) == [True] * 4
    assert wave(-1) == [True] * 3 + [False]


def test_a_reply_of_a_later_wave_is_compared_with_those_of_earlier_waves():
    screen = screen_of()
    assert passed(screen, (0, 1.0), (1, 1.0), (2, 1.0)) == [True] * 3
    assert passed(screen, (0, 9.0), (1, 91.0)) == [True, False]
    assert passed(screen, (2, 91.0)) == [
        False
    ]  # beside client 0's 9, the longest that was not refused
    assert passed(screen, (2, 89.0)) == [True]


def test_nobody_is_compared_with_an_own_reply_or_with_a_refused_one():
    """A liar that is asked often has no honest company in its own earlier replies."""
    screen = screen_of()
    assert passed(screen, (0, 100.0), (1, 1.0)) == [True, True]  # of two, nobody can say
    assert passed(screen, (0, 100.0)) == [True]
    assert passed(screen, (2, 1.0)) == [True]
    assert passed(screen, (0, 100.0)) == [False]
    assert passed(screen, (0, 1.0)) == [True]


def test_all_replies_of_a_client_count_as_its_wildest():
    """Otherwise a second, tame reply would hide the first, which is the one that is averaged."""
    replies = [(0, 100.0), (0, 1.0), (1, 1.0), (2, 1.0)]
    assert passed(screen_of(), *replies) == [False, False, True, True]


def test_what_cannot_be_read_or_is_not_finite_is_passed_on_and_counts_for_nobody():
    replies = [(0, float("nan")), (1, float("inf")), (2, 100.0), (3, 1.0)]
    assert passed(screen_of(), *replies) == [True] * 4
    assert passed(screen_of(COUNTS), *replies, (4, 1.0)) == [True, True, False, True, True]

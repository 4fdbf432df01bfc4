"""The kept state of clients: staged and committed, in memory and on disk, and the same for every memory budget."""

import errno
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl.core.errors import RunFailed
from fedssl.engine.client_states import ClientStates
from fedssl.engine.spill import Place, Spill

states = st.one_of(st.none(), st.binary(min_size=1, max_size=20_000))
rounds = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 5), states), max_size=6), st.booleans()),
    max_size=6,
)


@given(rounds=rounds, memory=st.sampled_from([0, 100, 30_000, 10**9]))
def test_it_is_a_table_that_a_round_changes_at_its_end(rounds, memory):
    """Against plain dictionaries; a round that does not end is forgotten."""
    store = ClientStates(memory)
    kept: dict[int, bytes] = {}
    versions: dict[int, int] = {}
    number = 0
    for changes, ends in rounds:
        staged = dict(kept)
        for client, state in changes:
            store.stage(client, state)
            staged.pop(client, None)
            if state is not None:
                staged[client] = state
            assert store.resident_bytes <= memory
            assert {c: store.get(c) for c in range(6)} == {c: staged.get(c) for c in range(6)}
            assert {c: store.kept(c) for c in kept} == kept
        if not ends:
            store.discard()
            continue
        store.commit()
        number += 1
        changed = {client for client, _ in changes}
        kept = staged
        versions = {c: number if c in changed else versions[c] for c in kept}
        assert store.versions() == versions
        assert store.round == number
    other = ClientStates(memory // 2)
    other.restore(number, store)
    assert {c: other.get(c) for c in range(6)} == {c: kept.get(c) for c in range(6)}
    assert (other.versions(), other.round) == (versions, number)
    store.close()
    assert store.resident_bytes == 0


def test_the_least_recently_used_leave_memory_first():
    store = ClientStates(300)
    for client in range(3):
        store.stage(client, bytes([client]) * 100)
    store.commit()
    store.get(0)
    store.stage(3, bytes([3]) * 100)
    in_memory = {c for c in range(4) if (store._staged.get(c) or store._kept[c]).data is not None}
    assert in_memory == {0, 2, 3}
    assert store.get(1) == bytes([1]) * 100
    store.close()


def test_a_place_that_is_free_is_used_again():
    """A client's next state is about as large as its last: the file does not grow from round to round."""
    generator = np.random.default_rng(0)
    spill = Spill()
    places: dict[int, Place] = {}
    ends = []
    for _ in range(30):
        for client in range(10):
            if client in places:
                spill.free(places[client])
            data = generator.bytes(100_000 + int(generator.integers(0, 50)))
            places[client] = spill.write(data)
            assert spill.read(places[client]) == data
        ends.append(spill._end)
    assert ends[0] == ends[-1] < 10 * 110_000
    spill.close()


def test_a_full_disk_says_where_and_what_to_do(monkeypatch):
    class Full:
        def seek(self, offset):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
    store = ClientStates(0)
    with pytest.raises(RunFailed, match=r"No space left on device; free space there, set TMPDIR"):
        store.stage(0, b"state")

"""Random streams are named and isolated, and leave torch's global stream unchanged."""

from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch

from fedssl.core import rng


def test_a_stream_is_its_name():
    names = [
        (seed, purpose, r, c)
        for seed in (0, 1)
        for purpose in ("cohort", "labels")
        for r in (0, 1, 11)
        for c in (-1, 0, 1, 11)
    ]
    seeds = {rng.derive_seed(s, p, round=r, client=c) for s, p, r, c in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine():
    """blake2b-64 of "0|cohort|1|-1", little-endian, shifted right by one; computed by hand with b2sum."""
    assert rng.derive_seed(0, "cohort", round=1) == HAND_COMPUTED


HAND_COMPUTED = int.from_bytes(bytes.fromhex("719f2db62548f5bf"), "little") >> 1


def test_global_streams_neither_matter_nor_move():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - to prove that nobody reads it
    first = (rng.make_generator(3, "a").initial_seed(), rng.make_numpy_generator(3, "a").random())
    before = torch.random.get_rng_state()
    with rng.seeded_torch(7):
        drawn = torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    with rng.seeded_torch(7):
        assert torch.equal(drawn, torch.rand(3))
    again = (rng.make_generator(3, "a").initial_seed(), rng.make_numpy_generator(3, "a").random())
    assert first == again


def test_the_global_stream_comes_back_after_an_error():
    before = torch.random.get_rng_state()

    def draw_and_raise():
        with rng.seeded_torch(7):
            torch.rand(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        draw_and_raise()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_thread_waits_for_the_global_stream():
    def draws(pause=lambda: None):
        with rng.seeded_torch(7):
            first = torch.rand(3)
            pause()
            return first, torch.rand(3)

    alone = draws()
    with ThreadPoolExecutor(1) as threads:

        def let_another_thread_in():
            others.append(threads.submit(draws))
            wait(others, timeout=0.1)

        others = []
        ours = draws(let_another_thread_in)
        theirs = others[0].result()
    assert all(torch.equal(*pair) for pair in zip(ours + theirs, alone + alone, strict=True))

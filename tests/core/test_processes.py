"""Imports without garbage collection, and work in a background thread."""

import gc
import threading

import pytest

from fedssl.core.processes import InBackground, quick_imports


def test_nobody_looks_for_garbage_while_modules_are_imported():
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_the_collector_is_back_after_an_import_that_failed():
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


def test_the_thread_lives_until_what_it_made_is_closed():
    made = InBackground(threading.current_thread)
    thread = made.result()
    assert thread is not threading.current_thread()
    assert thread.is_alive()
    closed = []
    made.end(closed.append)
    thread.join(10)
    assert closed == [thread]
    assert not thread.is_alive()


def test_who_asks_for_it_is_told_why_it_could_not_be_made():
    threads = []

    def make():
        threads.append(threading.current_thread())
        raise OSError("no room")

    background = InBackground(make)
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            background.result()
    background.end(lambda made: pytest.fail("there is nothing to close"))
    threads[0].join(10)
    assert not threads[0].is_alive()


def test_the_thread_ends_even_if_closing_fails():
    background = InBackground(threading.current_thread)
    thread = background.result()

    def close(made):
        raise OSError("it does not end")

    with pytest.raises(OSError, match="does not end"):
        background.end(close)
    thread.join(10)
    assert not thread.is_alive()

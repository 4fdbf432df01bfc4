"""Imports without garbage collection, and work in a background thread."""

import gc
import os
import platform
import subprocess
import sys
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


FAULTS = """
import resource

import torch

from fedssl.core.processes import keep_freed_memory

if {is_kept}:
    keep_freed_memory()
pages = []
for _ in range(12):
    step = [torch.ones(3 * 2**20) for _ in range(8)]  # 96 MB, which are 24,576 pages
    del step
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[6])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_training_process_asks_the_system_for_memory_once():
    """Again and again, blocks are freed and the same blocks are asked for again. They are mapped anew each time, unless they are kept."""
    mapping = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}

    def new_pages(is_kept):
        code = FAULTS.format(is_kept=is_kept)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=mapping
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert new_pages(False) > 100_000
    assert new_pages(True) < 1_000

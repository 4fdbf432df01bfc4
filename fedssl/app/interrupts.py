"""End a run on Ctrl-C, SIGTERM and SIGHUP.

The first signal ends a run in order, so that it can be resumed. The second signal ends the process at once. A second
SIGHUP changes nothing, because a terminal that closes often sends SIGHUP twice.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedssl.record.rows import Observer, RoundEnd

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = "\x1b[?25h"


class Interrupts(Observer):
    """Remember a signal, and end the run because of it.

    A signal raises `KeyboardInterrupt` in the main thread, wherever that thread is. If the exception is lost, as in
    another library's callback, or if the server runs in another thread, the run ends after the round.
    """

    def __init__(self) -> None:
        self.asked = False

    def round_ended(self, end: RoundEnd) -> None:
        """End the run if a signal has asked for its end."""
        if self.asked:
            raise KeyboardInterrupt

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first raises `KeyboardInterrupt`, a second ends the process."""
        if self.asked and number == signal.SIGHUP:
            return
        if self.asked:
            for stream in (sys.__stdout__, sys.__stderr__):
                if stream is not None and stream.isatty():
                    os.write(stream.fileno(), SHOW_CURSOR.encode())  # the live screen hid it
            os._exit(INTERRUPTED)
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Handle signals until the end of the block; once a signal has come, until the end of the process."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts  # only the main thread can handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, interrupts.handle_signal)
    try:
        yield interrupts
    finally:
        if not interrupts.asked:
            for number in taken:
                signal.signal(number, before[number])


def put_handlers_back() -> None:
    """Handle signals as before Ray's start, which replaces the handler of SIGTERM below Python's level."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))

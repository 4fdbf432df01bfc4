"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a run in order, so that it can be resumed; the second one ends it at once.

A terminal that closes sends SIGHUP, often twice: a second one changes nothing.
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
    """What was asked by signal.

    A signal becomes a `KeyboardInterrupt` in the main thread, wherever it is; where that is lost, as in a callback of
    somebody else's, or a server runs in another thread, the run ends after the round.
    """

    def __init__(self) -> None:
        self.asked = False

    def round_ended(self, end: RoundEnd) -> None:
        """End the run if that was asked."""
        if self.asked:
            raise KeyboardInterrupt

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
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
    """Handle signals until the end of the block, or of the process once one has come: then it closes."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, interrupts.take)
    try:
        yield interrupts
    finally:
        if not interrupts.asked:
            for number in taken:
                signal.signal(number, before[number])


def put_handlers_back() -> None:
    """Handle signals as before Ray began: on its start it takes SIGTERM at a level of which Python is not told."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))

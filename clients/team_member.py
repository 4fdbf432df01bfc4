"""A further process of a client's team: ``python -m fedssl.clients.team_member FD``, started by process 0.

It does for each client what process 0 does, on a device of its own, and answers nobody but process 0.
"""

import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection

from fedssl.core.processes import prepare_process, quick_imports, signal_when_parent_ends


def main() -> None:
    """Serve process 0 until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for process 0
    signal_when_parent_ends(signal.SIGKILL)  # even if this process is stopped or hangs
    link = Connection(int(sys.argv[1]))
    place, rank, devices = link.recv()
    threading.Thread(target=_end_with_process_0, daemon=True).start()
    prepare_process()
    with quick_imports():
        from fedssl.clients.team_work import Work

    work = Work(place, rank, devices)
    while True:
        metadata, content, context = pickle.loads(link.recv_bytes())
        error = work.prepare(metadata, content, context)
        link.send(error)
        if error is not None or link.recv_bytes() != b"go":
            return
        error = work.do()
        link.send(error)
        if error is not None:
            return


def _end_with_process_0() -> None:
    """End this process, wherever it is, as soon as process 0 has ended."""
    # Not `sys.stdin`: its lock, held by this thread, would abort the interpreter's own end.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

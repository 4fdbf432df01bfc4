"""The process that runs the client app for one SuperNode; see `fedssl.app.deploy.forks`.

This module imports next to nothing, so that the process can import the rest inside `quick_imports`.

    python -m fedssl.app.deploy.client_executor ADDRESS PROCESS
"""

import os
import signal
import sys

from fedssl.core.processes import quick_imports, signal_when_parent_ends


def main() -> None:
    """Serve the SuperNode with the given address and process number, until its process ends."""
    supernode = int(sys.argv[2])
    signal_when_parent_ends(signal.SIGTERM)
    if os.getppid() != supernode:  # it died before the call
        sys.exit(1)
    with quick_imports():
        from fedssl.app.deploy.forks import serve
    serve(sys.argv[1], supernode)


if __name__ == "__main__":
    main()

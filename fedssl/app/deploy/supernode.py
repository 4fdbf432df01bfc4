"""Run Flower's SuperNode as a process that ends when its work ends.

A SuperNode that has given up on its server logs the error and leaves its loop. Its process lives on, because a thread
of its API is not a daemon, and still answers that it is well (flwr 1.41), so nobody would start it again. Here the
process ends, so that a keeper or the engine of containers starts the next one.

    python -m fedssl.app.deploy.supernode ARGUMENTS-OF-FLOWER-SUPERNODE...
"""

import os
import sys
import traceback

from flwr.supernode.cli.flower_supernode import flower_supernode

from fedssl.app.deploy.services import LOST


def main() -> None:
    """Run a SuperNode; end this process when it returns or raises."""
    code = LOST
    try:
        flower_supernode()
        print("the SuperNode has lost its server, so this process ends", file=sys.stderr)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

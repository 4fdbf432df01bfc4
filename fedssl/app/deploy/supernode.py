"""Run Flower's SuperNode as a process that ends when its work ends.

A SuperNode that has given up on its server logs the error and leaves its loop. Its process lives on, because a thread
of its API is not a daemon, and still answers that it is well (flwr 1.41), so nobody would start it again. Here the
process ends, so that a keeper or the engine of containers starts the next one.

A SuperNode whose key is refused ends with an exit code of its own, and with one line in place of Flower's numbers. So
does one whose client was given a number that is not its own: the census would only tell once a run begins.

    python -m fedssl.app.deploy.supernode ARGUMENTS-OF-FLOWER-SUPERNODE...
"""

import argparse
import logging
import os
import sys
import traceback
from pathlib import Path

from flwr.common.config import parse_config_args
from flwr.supercore.error import ApiErrorCode
from flwr.supernode.cli.flower_supernode import flower_supernode

from fedssl.app.deploy.own_number import find_false_number
from fedssl.app.deploy.services import LOST, REFUSED, WRONG_NUMBER
from fedssl.exchange.protocol import PARTITION_ID


class Refusal(logging.Filter):
    """Hide Flower's message on a refused key, and remember that there was one (flwr 1.41)."""

    _CODE = f"[code: {ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:d}]"

    def __init__(self) -> None:
        super().__init__()
        self.was_seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        is_refusal = self._CODE in record.getMessage()
        self.was_seen |= is_refusal
        return not is_refusal


def _refuse_false_number() -> None:
    """End this process if the deployment has bound another number to this client's key."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--superlink", default="")
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--auth-supernode-private-key", type=Path)
    parser.add_argument("--node-config", default="")
    known, _ = parser.parse_known_args()
    number = parse_config_args([known.node_config]).get(PARTITION_ID)
    authority, key = known.root_certificates, known.auth_supernode_private_key
    if not isinstance(number, int) or authority is None or key is None:
        return
    if problem := find_false_number(known.superlink, authority, key, number):
        print(f"this client's number {problem}", file=sys.stderr)
        sys.exit(WRONG_NUMBER)


def main() -> None:
    """Run a SuperNode; end this process when it returns or raises."""
    _refuse_false_number()
    refusal = Refusal()
    logging.getLogger("flwr").addFilter(refusal)
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
        if refusal.was_seen:
            code = REFUSED
            print(
                "the server refuses this client's key: it is not registered, or another process uses it",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

"""Run the command line for ``python -m fedssl``."""

import sys

if not sys.flags.safe_path:
    # Python searches the current folder first and would take a user's file torch.py there for the library.
    sys.path.append(sys.path.pop(0))

from fedssl.cli import command_line

command_line()

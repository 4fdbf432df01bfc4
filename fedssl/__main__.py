"""``python -m fedssl`` is the command line."""

import sys

if not sys.flags.safe_path:
    # Python puts the current folder first, where a file torch.py of the user's would be taken for the library.
    sys.path.append(sys.path.pop(0))

from fedssl.cli import command_line

command_line()

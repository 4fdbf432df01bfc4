"""``python -m fedssl`` is the command line."""

from fedssl.cli import app

app()

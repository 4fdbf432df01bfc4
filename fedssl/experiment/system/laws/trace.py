"""Numbers measured elsewhere, read from a CSV file."""

from pathlib import Path

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.experiment.system.csv_file import CLIENT, read_columns
from fedssl.experiment.system.laws.base import Law, Numbers


class Trace(Law):
    """Give every client its number from a CSV file.

    The file's first line names its columns. The column ``client`` holds the clients 0 to K-1, each on exactly one line,
    in any order; lines of further clients are not used.
    """

    path: Path = Field(description="CSV file with the column client and the column of the numbers")
    column: str = Field(description="name of the column of the numbers")

    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return the file's numbers; this law draws nothing.

        Raises:
            InputError: The file cannot be read, lacks a column or a client, or has a client twice.
        """
        table = read_columns(self.path, (self.column,))
        order = np.argsort(table.clients, kind="stable")
        clients = table.clients[order]
        again = np.flatnonzero(clients[1:] == clients[:-1])
        if len(again):
            first, second = order[again[0]], order[again[0] + 1]
            raise InputError(
                str(self.path),
                f"line {table.lines[second]}: {CLIENT} {clients[again[0]]} is on line {table.lines[first]} already",
                "keep one line per client",
            )
        missing = np.setdiff1d(np.arange(num_clients), clients, assume_unique=True)
        if len(missing):
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(
                str(self.path),
                f"there is no line for {CLIENT} {missing[0]}{more}",
                f"there are {num_clients} clients, counted from 0",
            )
        return table.numbers[self.column][order[:num_clients]]

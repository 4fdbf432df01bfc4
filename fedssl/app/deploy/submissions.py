"""The submitted runs of a deployment: the run directory of each of Flower's run ids."""

import json
from collections.abc import Mapping
from pathlib import Path

from fedssl.core.errors import InputError
from fedssl.core.files import write_atomically


class Submissions:
    """The submitted runs, in a file, in the order in which they were submitted.

    A run that goes on after a stop is a new run of Flower's, with the same run directory.

    Args:
        file: The JSON file; it need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Mapping[str, str]:
        """Return the run directory of each of Flower's run ids, as a path below the folder of all runs.

        Raises:
            InputError: The file cannot be read, or holds something else.
        """
        try:
            table = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(run_id): str(record) for run_id, record in table.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise InputError("--folder", f"{self._file} cannot be read: {error}") from None

    def add(self, run_id: str, record: Path) -> None:
        """Add a run.

        Args:
            run_id: Flower's id of the run.
            record: Its run directory, below the folder of all runs.
        """
        table = {**self.read(), run_id: record.as_posix()}
        write_atomically(self._file, json.dumps(table, indent=1).encode())

    def last_of(self, record: Path) -> str | None:
        """Return Flower's id of the last run with a run directory; None if there is none."""
        ids = [run_id for run_id, path in self.read().items() if path == record.as_posix()]
        return ids[-1] if ids else None

"""A method of a user's own that takes its process along, as one that uses up all memory does."""

import os
import signal

from fedssl.methods.base import Learner
from tests.plugins.raising import Raising


class Deadly(Raising):
    """Kill the process at the first client."""

    def begin(self, learner: Learner) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

"""A user's own method that kills its process, as a method that uses up all memory does."""

import os
import signal

from fedssl.methods.base import Learner
from tests.plugins.raising import Raising


class Deadly(Raising):
    """Kill the process at the first client."""

    def begin(self, learner: Learner) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

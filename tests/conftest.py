import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from fedssl.data.cache import CACHE_VARIABLE
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from tests.helpers import federation_of, small_experiment


def pytest_configure(config: pytest.Config) -> None:
    """Prepare data in a folder of this session's, from the first import on; workers and subprocesses inherit it."""
    folder = tempfile.mkdtemp(prefix="fedssl-tests-")
    os.environ[CACHE_VARIABLE] = folder
    # Ray's workers run at niceness 15 by default, and starve beside another test.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    # A busy machine is no fault of a property, so examples have no deadline; pytest's own timeout ends a test that hangs.
    hypothesis.settings.register_profile("no-deadline", deadline=None)
    hypothesis.settings.load_profile("no-deadline")
    # A shell lets what it starts in the background ignore Ctrl-C, and so would all processes that a test interrupts.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _import_path() -> Iterator[None]:
    """Forget the folders of the experiments that a test read, in which modules are searched."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def experiment() -> Experiment:
    return small_experiment()


@pytest.fixture(scope="session")
def federation() -> Federation:
    return federation_of(small_experiment())

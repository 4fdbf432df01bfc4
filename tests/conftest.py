import pytest
import torch

from fedssl.config import Experiment
from fedssl.data.federation import Federation
from tests.helpers import federation_of, small_experiment


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def experiment() -> Experiment:
    return small_experiment()


@pytest.fixture(scope="session")
def federation() -> Federation:
    return federation_of(small_experiment())

"""Two runs in threads of one process: one waits for the other, so both have the results that they have alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from fedssl.clients.client_app import app
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from tests.helpers import small_experiment


class Rounds(Observer):
    """Notes which run ended a round."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def round_ended(self, end):
        self.notes.append(self.name)


def test_two_runs_of_one_experiment_take_turns():
    """Both would train the same resident network, and draw from the same global stream."""
    experiment = small_experiment(method={"kind": "supervised"}, rounds=3)
    begin, notes = Barrier(2), []

    def weights(name):
        begin.wait()
        grid = SerialGrid(Apps(app), 6, "cpu")
        return serve(experiment, grid, [Rounds(name, notes)]).model.arrays

    alone = serve(experiment, SerialGrid(Apps(app), 6, "cpu"), []).model.arrays
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(weights, ("a", "b")))
    assert len(notes) == 6
    assert notes in (["a"] * 3 + ["b"] * 3, ["b"] * 3 + ["a"] * 3)
    for found in together:
        assert all(alone[name].tobytes() == found[name].tobytes() for name in alone)

"""Threads that share one engine take turns, from the choice of the workers to the end of the run."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from fedssl.app.simulation import Engine
from fedssl.record.rows import Observer
from tests.helpers import small_experiment


class Notes(Observer):
    """Notes the end of a round."""

    def __init__(self, notes):
        self.notes = notes

    def round_ended(self, end):
        self.notes.append("round")


def test_workers_are_not_given_to_a_second_run_before_the_first_has_ended(monkeypatch):
    notes, begin, choose = [], Barrier(2), Engine._grid_for

    def chosen(engine, experiment):
        notes.append("workers")
        return choose(engine, experiment)

    monkeypatch.setattr(Engine, "_grid_for", chosen)
    with Engine() as engine, ThreadPoolExecutor(2) as threads:

        def run(seed):
            experiment = small_experiment(
                method={"kind": "supervised"}, rounds=2, seed=seed, engine={"kind": "serial"}
            )
            begin.wait()
            engine.run(experiment, [Notes(notes)])

        list(threads.map(run, (0, 1)))
    assert notes == ["workers", "round", "round"] * 2

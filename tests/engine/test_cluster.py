"""Several Ray nodes: a run joins a cluster by its address, uses all nodes, and survives the loss of a node."""

from tests.engine.ray.test_grid import in_a_process_of_its_own
from tests.helpers import sha256, small_experiment, small_toml


def test_a_run_over_two_nodes_goes_on_when_one_is_killed(tmp_path):
    """Two nodes of one core each; after round 2 of 5 the second is killed: the bits are those of the serial grid."""
    out = in_a_process_of_its_own(f"""
        import time
        from pathlib import Path

        from ray.cluster_utils import Cluster

        from fedssl.clients.client_app import app
        from fedssl.experiment.experiment import Experiment
        from fedssl.record.rows import Observer
        from fedssl.record.run_directory import RunDirectory
        from fedssl.app.simulation import Engine
        from tests.helpers import small_experiment

        cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        wanted = {{"rounds": 5, "federation": {{"sample": 6}}}}
        engine = {{"kind": "ray", "workers": 2, "address": cluster.address}}

        def alive(pid):
            return Path(f"/proc/{{pid}}").exists()

        class Killer(Observer):
            def round_ended(self, end):
                incidents.extend(end.incidents)
                if end.row.round != 2:
                    return
                workers = machine._grid.result().describe_workers()
                print("nodes", len({{worker["node"] for worker in workers}}))
                cluster.remove_node(second, allow_graceful=False)
                until = time.monotonic() + 60
                while all(alive(worker["pid"]) for worker in workers) and time.monotonic() < until:
                    time.sleep(0.1)
                incidents.clear()

        incidents = []
        folder = Path({str(tmp_path)!r})
        with Engine() as machine:
            experiment = small_experiment(**wanted, engine=engine)
            machine.run(experiment, [Killer(), RunDirectory(folder / "two")])
        print("incidents", bool(incidents))
        cluster.shutdown()
        with Engine() as machine:
            machine.run(small_experiment(**wanted), [RunDirectory(folder / "serial")])
    """)
    assert "nodes 2" in out
    assert "incidents True" in out
    one, other = (sha256(tmp_path / run / "model.safetensors") for run in ("two", "serial"))
    assert one == other


def test_a_team_has_its_devices_on_one_node(tmp_path):
    """Two nodes with two pretended GPUs each: two workers with the GPUs of a node, and the bits of a serial team of two."""
    out = in_a_process_of_its_own(f"""
        from pathlib import Path

        from ray.cluster_utils import Cluster

        from fedssl.record.rows import Observer
        from fedssl.record.run_directory import RunDirectory
        from fedssl.app.simulation import Engine
        from tests.helpers import small_experiment

        node = {{"num_cpus": 2, "num_gpus": 2}}
        head = {{**node, "include_dashboard": False}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        engine = {{"kind": "ray", "gpus_per_worker": 2, "address": cluster.address}}

        class Looker(Observer):
            def round_ended(self, end):
                workers = machine._grid.result().describe_workers()
                print(len({{worker["node"] for worker in workers}}), [w["gpu_ids"] for w in workers])

        folder = Path({str(tmp_path)!r})
        with Engine() as machine:
            machine.run(small_experiment(rounds=1, engine=engine), [Looker(), RunDirectory(folder / "two")])
        cluster.shutdown()
        engine = {{"kind": "serial", "cpus_per_client": 2}}
        with Engine() as machine:
            machine.run(small_experiment(rounds=1, engine=engine), [RunDirectory(folder / "serial")])
    """)
    assert "2 [[0, 1], [0, 1]]" in out
    one, other = (sha256(tmp_path / run / "model.safetensors") for run in ("two", "serial"))
    assert one == other


def test_an_address_where_nobody_is_is_the_users_mistake(tmp_path):
    from tests.helpers import fedssl, refused

    engine = {"kind": "ray", "address": "127.0.0.1:1"}
    file = small_toml(tmp_path / "e.toml", engine=engine)
    assert small_experiment(engine=engine).engine.address == "127.0.0.1:1"
    refused(fedssl("run", file, "--out", tmp_path / "run"), "engine.address", "127.0.0.1:1")
    assert not (tmp_path / "run" / "rounds.csv").exists()

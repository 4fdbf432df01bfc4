"""``fedssl deploy``: make a deployment, start it, let clients in, run experiments, look, and end it."""

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.table import Table

from fedssl.console import Console
from fedssl.errors import InputError, RunFailed
from fedssl.guard import guarded

app = typer.Typer(
    help="Run experiments over real processes, in containers or on this host: TLS, and a key for every client.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Option("--folder", help="Of the deployment.")]
NoContainers = Annotated[
    bool, typer.Option("--no-containers", help="The same processes on this host.")
]
DEPLOYMENT = Path("deployment")

POLL_SECONDS = 1.0
"""Between looks at a run."""


def say(line: str) -> None:
    """Print a line as it is."""
    Console().print(line, soft_wrap=True)


@app.command()
@guarded
def init(
    folder: Folder = DEPLOYMENT,
    clients: Annotated[int, typer.Option(help="Clients with a key and a service here.")] = 2,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or address by which clients elsewhere reach this host; repeatable."
        ),
    ] = None,
    bind: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other hosts in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the gate, all that clients need.")] = 9443,
    data: Annotated[
        list[str] | None,
        typer.Option(help="NUMBER=PATH: a client's own images, a folder or .npz; repeatable."),
    ] = None,
    server_data: Annotated[
        Path | None, typer.Option(help="The server's images, where the experiment names files.")
    ] = None,
) -> None:
    """Make certificates, keys and the services' file; nothing is overwritten.

    Example:
      fedssl deploy init --clients 3 --name fed.example.org --bind 0.0.0.0 --data 0=/srv/images
    """
    from fedssl.deploy.containers import as_yaml, compose_file
    from fedssl.deploy.deployment import Deployment, data_of, existing, settings_of

    settings = settings_of(
        {
            "clients": clients,
            "names": tuple(name or ()),
            "bind": bind,
            "port": port,
            "data": data_of(data or []),
            "server_data": None if server_data is None else existing("--server-data", server_data),
        }
    )
    made = Deployment.create(folder, settings)
    remark = "Written by `fedssl deploy init`; its keys and certificates are beside it."
    (folder / "docker-compose.yml").write_text(as_yaml(compose_file(settings), remark))
    say(f"{folder}: certificates, {settings.clients} client keys, docker-compose.yml")
    say(f"  every client needs {made.certificates / 'ca.crt'} and its own key, and nobody else's")
    say(f"  to start it: {_again('up', folder)}")


@app.command()
@guarded
def up(folder: Folder = DEPLOYMENT, no_containers: NoContainers = False) -> None:
    """Start the server, let this deployment's clients in, start them, and wait until all are there."""
    deployment = _open(folder)
    operator, at = _operator(deployment, no_containers)
    if no_containers:
        from fedssl.deploy.host import Host

        host = Host(deployment)
        say("starting superlink, executor and gate on this host")
        host.start(host.server)
        _register_all(deployment, operator, at)
        say(f"starting {len(host.clients)} clients on this host")
        host.start(host.clients)
    else:
        from fedssl.deploy.containers import Containers

        containers = Containers(deployment, say)
        containers.compose("up", "--detach", "--wait", "superlink", "executor", "gate")
        _register_all(deployment, operator, at)
        containers.compose("up", "--detach", "--wait")
    _wait_for_clients(deployment, operator, no_containers)
    say(f"up: {deployment.settings.clients} clients connected")
    say(f"  to run an experiment: {_again('run FILE', folder, no_containers)}")


@app.command()
@guarded
def register(
    key: Annotated[Path, typer.Argument(help="Public key of a client elsewhere (.pub).")],
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = False,
    name: Annotated[str | None, typer.Option(help="What the client is called.")] = None,
) -> None:
    """Let in a client that runs elsewhere, by its public key.

    Example:
      fedssl deploy register mine.pub
    """
    deployment = _open(folder)
    if not key.is_file():
        raise InputError("KEY", f"there is no file {key}")
    kept = deployment.folder / "keys" / f"{name or key.stem}.pub"
    if kept.absolute() != key.absolute():
        if kept.exists() and kept.read_bytes() != key.read_bytes():
            raise InputError(
                "--name", f"{kept.stem!r} has another key already", "take another name"
            )
        kept.write_bytes(key.read_bytes())
    operator, at = _operator(deployment, no_containers)
    new = operator.register(str(at / "keys" / kept.name), kept.stem)
    say(f"{kept.stem}: {'registered' if new else 'was registered already'}")


@app.command()
@guarded
def run(
    file: Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)],
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, as in fedssl run.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, no live screen.")] = False,
) -> None:
    """Run an experiment over the deployment's clients; its record comes out as that of a simulation.

    Example:
      fedssl deploy run experiments/deployment.toml --set rounds=10
    """
    from fedssl.clients.local_data import simulated_federation
    from fedssl.config import Experiment
    from fedssl.deploy.follow import follow
    from fedssl.trackers.base import refuse_tracker

    deployment = _open(folder)
    experiment = Experiment.load(file, settings or [])
    refuse_tracker(experiment)
    federation = simulated_federation(
        experiment
    )  # what is missing here is said before it runs there
    operator, at = _operator(deployment, no_containers)
    connected = _connected(operator)
    if connected < experiment.federation.clients:
        raise InputError(
            "federation.clients",
            f"is {experiment.federation.clients}, but {connected} clients are connected",
            f"start more, or see who is missing: {_again('status', folder, no_containers)}",
        )
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
    record = Path(experiment.name, stamp)
    submitted = deployment.submitted / f"{experiment.name}-{stamp}.toml"
    config = {"experiment-json": experiment.to_json(), "run-directory": f"runs/{record}"}
    submitted.write_text(tomli_w.dumps(config))
    run_id = operator.start_run(str(at / "app"), str(at / "submitted" / submitted.name))
    directory = deployment.runs / record
    try:
        status = follow(experiment, federation, operator, run_id, directory, plain=plain)
    except KeyboardInterrupt:
        operator.stop_run(run_id)
        raise
    say(f"  recorded in {directory}")
    if status:
        raise RunFailed(f"run {run_id} ended as {status}; {_logs(deployment, no_containers)}")


@app.command()
@guarded
def status(folder: Folder = DEPLOYMENT, no_containers: NoContainers = False) -> None:
    """Say how every process is, which clients are connected, and what has run."""
    deployment = _open(folder)
    table = Table("process", "state", "starts", show_edge=False)
    if no_containers:
        from fedssl.deploy.host import Host

        for state in Host(deployment).states():
            health = {None: "", True: ", healthy", False: ", does not answer"}[state.healthy]
            shown = f"runs{health}" if state.runs else "does not run"
            table.add_row(state.name, shown, str(state.starts))
    else:
        from fedssl.deploy.containers import Containers

        for entry in Containers(deployment, say).states():
            table.add_row(str(entry["Service"]), str(entry["Status"]), "")
    console = Console()
    console.print(table)
    operator, _ = _operator(deployment, no_containers)
    nodes = Table("client", "status", "since", show_edge=False)
    for node in operator.nodes():
        nodes.add_row(str(node["node-id"]), str(node["status"]), str(node["online-at"]))
    console.print(nodes)
    runs = Table("run", "status", "", show_edge=False)
    for entry in operator.runs():
        details = entry.get("status-details")
        runs.add_row(
            str(entry["run-id"]), str(entry["status"]), "" if details == "N/A" else str(details)
        )
    console.print(runs)


@app.command()
@guarded
def down(folder: Folder = DEPLOYMENT, no_containers: NoContainers = False) -> None:
    """End all processes; keys, the database and runs stay."""
    deployment = _open(folder)
    if no_containers:
        from fedssl.deploy.host import Host

        Host(deployment).stop()
    else:
        from fedssl.deploy.containers import Containers

        Containers(deployment, say).compose("--profile", "operator", "down")
    say("down")


@app.command()
@guarded
def join(
    server: Annotated[
        str, typer.Argument(help="The gate of a deployment elsewhere, as HOST:PORT.")
    ],
    number: Annotated[int, typer.Option(help="This client's number in the federation, from 0.")],
    key: Annotated[
        Path, typer.Option(help="Its private key; made, with KEY.pub, if it is not there.")
    ],
    ca: Annotated[Path, typer.Option(help="The deployment's ca.crt.")],
    data: Annotated[
        Path | None, typer.Option(help="Its own images, a folder or .npz; unset: the experiment's.")
    ] = None,
    port: Annotated[int, typer.Option(help="For its own use, on the loopback.")] = 9094,
) -> None:
    """Be a client of a deployment on another host, until interrupted.

    Example:
      fedssl deploy join fed.example.org:9443 --number 0 --key mine --ca ca.crt --data /srv/photos
    """
    from fedssl.deploy.secrets import write_node_key
    from fedssl.deploy.services import client_service, environment

    if not key.exists():
        write_node_key(key)
        say(
            f"{key}: made. Send {key}.pub to the deployment, which lets it in: fedssl deploy register {key.name}.pub"
        )
        return
    for path in (ca, *((data,) if data else ())):
        if not path.exists():
            raise InputError("--ca" if path == ca else "--data", f"there is nothing at {path}")
    own = None if data is None else data.absolute()
    service = client_service(number, server, ca.absolute(), key.absolute(), port, own)
    say(f"$ {shlex.join(service.command)}")
    variables = environment()
    os.execvpe(service.command[0], service.command, variables)


def _open(folder: Path) -> Any:
    from fedssl.deploy.deployment import Deployment

    return Deployment.open(folder)


def _operator(deployment: Any, no_containers: bool) -> Any:
    """Return Flower's command line against a deployment, and where it sees the deployment's folder."""
    from fedssl.deploy.containers import IN_CONTAINERS, OPERATOR, Containers
    from fedssl.deploy.operator import Operator
    from fedssl.deploy.services import on_this_host

    home = deployment.connection.parent
    if no_containers:
        place = on_this_host(deployment)
        deployment.write_connection(place.superlink, str(place.authority))
        return Operator(home, list, say), deployment.folder.absolute()
    deployment.write_connection(IN_CONTAINERS.superlink, str(IN_CONTAINERS.authority))
    containers = Containers(deployment, say)

    def inside(command: Sequence[str]) -> list[str]:
        copied = (
            f'mkdir -p /tmp/flower && cp {OPERATOR}/flower/config.toml /tmp/flower/ && exec "$@"'
        )
        return containers.command(
            "run", "--rm", "--no-deps", "-T", "run", "sh", "-c", copied, "sh", *command
        )

    return Operator(home, inside, say, containers.environment), OPERATOR


def _register_all(deployment: Any, operator: Any, at: Any) -> None:
    for number in range(deployment.settings.clients):
        name = f"client-{number}"
        if not operator.register(str(at / "keys" / f"{name}.pub"), name):
            say(f"{name}: was registered already")


def _connected(operator: Any) -> int:
    return sum(node["status"] == "online" for node in operator.nodes())


def _wait_for_clients(deployment: Any, operator: Any, no_containers: bool) -> None:
    wanted = deployment.settings.clients
    deadline = time.monotonic() + 120
    while (there := _connected(operator)) < wanted:
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{there} of {wanted} clients are connected; {_logs(deployment, no_containers)}"
            )
        time.sleep(POLL_SECONDS)


def _logs(deployment: Any, no_containers: bool) -> str:
    if no_containers:
        return f"what its processes said: {deployment.logs}"
    return f"what its processes said: docker compose --file {deployment.folder}/docker-compose.yml logs"


def _again(command: str, folder: Path, no_containers: bool = False) -> str:
    where = "" if folder == DEPLOYMENT else f" --folder {shlex.quote(str(folder))}"
    return f"fedssl deploy {command}{where}{' --no-containers' if no_containers else ''}"

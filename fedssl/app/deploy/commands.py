"""``fedssl deploy``: make a deployment, start it, register clients, run experiments, show its status, and end it."""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.table import Table
from rich.text import Text

from fedssl.app.commands.arguments import check_files
from fedssl.app.commands.completion import complete_setting
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.machine import available_cores

app = typer.Typer(
    help="Run experiments over real processes, in containers or on this host: TLS, and a key for every client.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Option("--folder", help="The deployment's folder.")]
NoContainers = Annotated[
    bool, typer.Option("--no-containers", help="Use processes on this host, no containers.")
]
DEPLOYMENT = Path("deployment")

POLL_SECONDS = 1.0
"""A command that waits for clients counts the connected clients again after this many seconds."""

DAYS_OF_WARNING = 30
"""Every command warns if the certificate expires within this many days."""


def say(line: str) -> None:
    """Print a line of plain text."""
    Console().tell(line)


@app.command()
@guarded
def init(
    folder: Folder = DEPLOYMENT,
    clients: Annotated[
        int, typer.Option(help="Number of clients that get a key and a service here.")
    ] = 2,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or address by which clients elsewhere reach this host; repeatable."
        ),
    ] = None,
    bind: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other hosts in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port of the gate, the only port that clients need.")
    ] = 9443,
    data: Annotated[
        list[str] | None,
        typer.Option(help="NUMBER=PATH: a client's own images, a folder or .npz; repeatable."),
    ] = None,
    server_data: Annotated[
        Path | None,
        typer.Option(help="The server's images, for an experiment that names its data as files."),
    ] = None,
    allowed_plugins: Annotated[
        str,
        typer.Option(help="Modules that experiments may name and clients import, as a.b,c.d"),
    ] = "",
    devices: Annotated[
        str,
        typer.Option(help="Devices of each client here, as cpu,cpu or cuda:0,cuda:1."),
    ] = "",
) -> None:
    """Make the certificates, the keys and the services' file of a new deployment; nothing is overwritten.

    Example:
      fedssl deploy init --clients 3 --name fed.example.org --bind 0.0.0.0 --data 0=/srv/images
    """
    from fedssl.app.deploy.containers import as_yaml, compose_file
    from fedssl.app.deploy.deployment import (
        Deployment,
        make_settings,
        read_data_options,
        resolve_existing,
    )

    # Check all options before anything is written.
    settings = make_settings(
        {
            "clients": clients,
            "names": tuple(name or ()),
            "bind": bind,
            "port": port,
            "data": read_data_options(data or []),
            "server_data": None
            if server_data is None
            else resolve_existing("--server-data", server_data),
            "allowed_plugins": allowed_plugins,
            "devices": devices,
        }
    )
    # Write the deployment's folder, and its Compose file beside the settings.
    made = Deployment.create(folder, settings)
    remark = "Written by `fedssl deploy init`; its keys and certificates are beside it."
    (folder / "docker-compose.yml").write_text(as_yaml(compose_file(settings), remark))
    say(f"{folder}: certificates, {settings.clients} client keys, docker-compose.yml")
    say(f"  every client needs {made.certificates / 'ca.crt'} and its own key, and no other key")
    say(f"  to start it: {_deploy_command('up', folder)}")


@app.command()
@guarded
def up(folder: Folder = DEPLOYMENT, no_containers: NoContainers = False) -> None:
    """Start the server, register and start this deployment's clients, and wait until all are connected."""
    deployment = _open_deployment(folder)
    operator, at = _make_operator(deployment, no_containers)
    if no_containers:
        from fedssl.app.deploy.host import Host

        host = Host(deployment)
        ran = {state.name for state in host.states() if state.runs}
        say("starting superlink, executor and gate on this host")
        host.start(host.server)
        _register_all(deployment, operator, at)
        lost = _find_lost_clients(deployment, operator, ran)
        host.restart([client for client in host.clients if client.name in lost])
        say(f"starting {len(host.clients)} clients on this host")
        host.start(host.clients)
    else:
        from fedssl.app.deploy.containers import Containers

        containers = Containers(deployment, say)
        ran = {str(e["Service"]) for e in containers.states() if e.get("State") == "running"}
        containers.compose("up", "--detach", "--wait", "superlink", "executor", "gate")
        _register_all(deployment, operator, at)
        lost = _find_lost_clients(deployment, operator, ran)
        if lost:
            containers.compose("restart", *sorted(lost))
        containers.compose("up", "--detach", "--wait")
    _wait_for_clients(deployment, operator, no_containers)
    say(f"up: {deployment.settings.clients} clients connected")
    say(f"  to run an experiment: {_deploy_command('run FILE', folder, no_containers)}")


@app.command()
@guarded
def register(
    key: Annotated[Path, typer.Argument(help="Public key of a client elsewhere (.pub).")],
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = False,
    name: Annotated[
        str | None, typer.Option(help="The client's name; unset: the name of the key's file.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The client's number, bound to it alone; unset: it may use any free number.",
        ),
    ] = None,
) -> None:
    """Register a client that runs elsewhere, by its public key.

    Example:
      fedssl deploy register mine.pub --number 0
    """
    from fedssl.app.deploy.admitted import read_public_key

    deployment = _open_deployment(folder)
    try:
        read_public_key(key)
    except OSError as error:
        raise InputError("KEY", f"{key} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(
            "KEY",
            f"{key} is not a client's public key, and was not copied",
            f"give the .pub file that `fedssl deploy join` made (ECDSA, one line of text); "
            f"a private key stays on its client's host{_mention_public_key(key)}",
        ) from None
    called = key.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", called):
        raise InputError(
            "--name",
            f"{called!r} cannot be a client's name",
            "use up to 64 letters, digits, dots, hyphens and underscores",
        )
    operator, at = _make_operator(deployment, no_containers)
    new = _admit(deployment, operator, at, key, called, number)
    bound = "" if number is None else f", as client {number}"
    say(f"{called}: {'registered' if new else 'was registered already'}{bound}")


@app.command()
@guarded
def run(
    file: Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)],
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a setting, as in fedssl run.", autocompletion=complete_setting
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, no live screen.")] = False,
) -> None:
    """Run an experiment over the deployment's clients; its record has the same form as a simulation's.

    Example:
      fedssl deploy run experiments/deployment.toml --set rounds=10
    """
    check_files([file])
    from fedssl.app.deploy.follow import follow
    from fedssl.app.deploy.roster import Roster
    from fedssl.app.interrupts import interruptible
    from fedssl.app.simulation import check_phases
    from fedssl.clients.local_data import simulated_federation
    from fedssl.experiment.experiment import Experiment
    from fedssl.server.accountant import account_for, with_chosen_noise
    from fedssl.views.trackers.base import refuse_tracker

    # Check the experiment here, before anything is submitted: its data, its phases, and the number of connected clients.
    deployment = _open_deployment(folder)
    experiment = Experiment.load(file, settings or [])
    if experiment.federation.sites is not None:
        experiment = experiment.deployed()
        say(
            "sites: each deployed client brings its own images in place of its site's (federation.private)"
        )
    refuse_tracker(experiment)
    federation = simulated_federation(experiment)
    check_phases(experiment, federation)
    if experiment.privacy is not None and experiment.privacy.epsilon is not None:
        # The noise is chosen here, because the server's host may lack the accountant's library.
        experiment = with_chosen_noise(experiment)
        account = account_for(experiment)
        assert account is not None
        say(f"privacy: {account.describe()}")
    operator, at = _make_operator(deployment, no_containers)
    connected = _count_connected(operator)
    if connected < experiment.federation.clients:
        raise InputError(
            "federation.clients",
            f"is {experiment.federation.clients}, but only {connected} clients are connected",
            f"start more, or see which are missing: {_deploy_command('status', folder, no_containers)}",
        )
    # Submit the run. Its settings travel in a TOML file, which is Flower's run config.
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
    record = Path(experiment.name, stamp)
    submitted = deployment.submitted / f"{experiment.name}-{stamp}.toml"
    config = {
        "experiment-json": experiment.to_json(),
        "run-directory": f"runs/{record}",
        "nodes": json.dumps(dict(Roster(deployment.roster).numbers())),
    }
    submitted.write_text(tomli_w.dumps(config))
    run_id = operator.start_run(str(at / "app"), str(at / "submitted" / submitted.name))
    # Show the run until it ends. If nobody can watch it any more, stop it.
    directory = deployment.runs / record
    with interruptible():
        try:
            status = follow(experiment, federation, operator, run_id, directory, plain=plain)
        except (KeyboardInterrupt, OSError):  # OSError: the terminal is gone
            operator.stop_run(run_id)
            raise
    say(f"  recorded in {directory}")
    if status:
        server = f"its server app's log: {_flwr_log_command(deployment, no_containers, run_id)}"
        raise RunFailed(
            f"run {run_id} ended as {status}; {_describe_logs(deployment, no_containers)}; {server}"
        )


@app.command()
@guarded
def status(folder: Folder = DEPLOYMENT, no_containers: NoContainers = False) -> None:
    """Show the state of every process, the connected clients, and all runs."""
    from fedssl.app.deploy.roster import Roster

    deployment = _open_deployment(folder, is_asked=True)
    operator, _ = _make_operator(deployment, no_containers)
    unreachable: RunFailed | None = None
    nodes: list[Mapping[str, Any]] = []
    try:
        nodes = operator.nodes()
    except RunFailed as error:
        unreachable = error
    roster = Roster(deployment.roster)
    names = {str(node["node-id"]): roster.name_of(str(node["node-id"])) for node in nodes}
    away = {names[str(node["node-id"])] for node in nodes if node["status"] != "online"}
    console = Console()
    console.print(_process_table(deployment, no_containers, away))
    answer = _ask_gate(deployment)
    for warning in filter(None, (answer.problem and f"gate: {answer.problem}", answer.clocks)):
        say(warning)
    if unreachable is not None:
        raise unreachable
    clients = Table("client", "number", "node", "status", "since", show_edge=False)
    entries = roster.read()
    for node in nodes:
        name = names[str(node["node-id"])]
        number = entries[name].number if name else None
        cells = (name or "?", "any" if number is None else number, node["node-id"])
        clients.add_row(*map(_plain_cell, (*cells, node["status"], node["online-at"])))
    console.print(clients)
    runs = Table("run", "status", "details", show_edge=False)
    for entry in operator.runs():
        details = str(entry.get("status-details") or "").replace("N/A", "")
        runs.add_row(*map(_plain_cell, (entry["run-id"], entry["status"], details)))
    console.print(runs)
    say(_describe_logs(deployment, no_containers))
    say(f"the log of a run's server app: {_flwr_log_command(deployment, no_containers, 'RUN')}")


@app.command()
@guarded
def down(folder: Folder = DEPLOYMENT, no_containers: NoContainers = False) -> None:
    """End all processes; the keys, the database and the runs stay."""
    deployment = _open_deployment(folder)
    if no_containers:
        from fedssl.app.deploy.host import Host

        Host(deployment).stop()
    else:
        from fedssl.app.deploy.containers import Containers

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
        Path,
        typer.Option(help="This client's private key; a missing key is made, with KEY.pub."),
    ],
    ca: Annotated[Path, typer.Option(help="The deployment's ca.crt.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="This client's own images, a folder or .npz; unset: its share of the experiment's."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port for this client's own use, on the loopback.")
    ] = 9094,
    privacy_clipping_norm: Annotated[
        float | None,
        typer.Option(min=0, help="Largest privacy.clipping_norm that this client accepts."),
    ] = None,
    privacy_noise_multiplier: Annotated[
        float | None,
        typer.Option(
            min=0, help="Least privacy.noise_multiplier with which this client adds noise."
        ),
    ] = None,
    privacy_rounds: Annotated[
        int | None,
        typer.Option(min=0, help="Most requests that this client answers, over all runs together."),
    ] = None,
    allowed_plugins: Annotated[
        str,
        typer.Option(help="Modules that experiments may name and this client imports, as a.b,c.d"),
    ] = "",
    devices: Annotated[
        str,
        typer.Option(help="Devices on which this client trains, as cpu,cpu or cuda:0,cuda:1."),
    ] = "",
) -> None:
    """Run a client of a deployment on another host, until interrupted.

    Example:
      fedssl deploy join fed.example.org:9443 --number 0 --key mine --ca ca.crt --data /srv/photos
    """
    from fedssl.app.deploy.deployment import ALLOWED_PLUGINS, DEVICES
    from fedssl.app.deploy.keeper import keep
    from fedssl.app.deploy.secrets import write_node_key
    from fedssl.app.deploy.services import (
        LOST,
        client_service,
        environment_for_flower,
        with_this_package,
    )

    # Without a key: make one, which the deployment must register first.
    if not key.exists():
        write_node_key(key)
        say(
            f"{key}: made. Send {key}.pub to the deployment's operator, who registers it: "
            f"fedssl deploy register {key.name}.pub --number {number}"
        )
        return
    # Refuse what would fail only later: missing files, a wrong list of modules, a wrong clock.
    for path in (ca, *((data,) if data else ())):
        if not path.exists():
            raise InputError("--ca" if path == ca else "--data", f"there is nothing at {path}")
    if not re.fullmatch(ALLOWED_PLUGINS, allowed_plugins):
        raise InputError(
            "--allowed-plugins",
            f"{allowed_plugins!r} is not a list of modules",
            "separate their names by commas, e.g. mylab.mine,other",
        )
    if not re.fullmatch(DEVICES, devices):
        raise InputError(
            "--devices",
            f"{devices!r} is not a list of devices",
            "separate them by commas, e.g. cuda:0,cuda:1",
        )
    _refuse_missing_devices(devices)
    _refuse_wrong_clock(server, ca)
    # Start the SuperNode, and start it again whenever it is lost.
    own = None if data is None else data.absolute()
    asked: dict[str, str | float | None] = {
        "privacy-clipping-norm": privacy_clipping_norm,
        "privacy-noise-multiplier": privacy_noise_multiplier,
        "privacy-rounds": privacy_rounds,
        "allowed-plugins": allowed_plugins or None,
        "device": devices or None,
    }
    further = {name: value for name, value in asked.items() if value is not None}
    service = client_service(
        sys.executable, number, server, ca.absolute(), key.absolute(), port, own, further
    )
    say(f"$ {shlex.join(service.command)}")
    os.environ.update(with_this_package(environment_for_flower()))

    def is_over(starts: int, code: int) -> bool:
        # An error at the first start is the user's, so it ends the client. Later errors do not: Flower lets a lost
        # client in again only after about a minute, and ends it with an error until then (1.41).
        return starts == 1 and code not in (LOST, -signal.SIGKILL)

    code = keep(list(service.command), lambda process, starts: None, is_over)
    if code not in (0, -signal.SIGTERM):
        raise RunFailed(f"the client ended with exit code {code}; the reason is printed above")


def _open_deployment(folder: Path, *, is_asked: bool = False) -> Any:
    """Open a deployment, and warn if its certificate expires soon.

    Args:
        folder: The deployment's folder.
        is_asked: An expired certificate is shown as a warning; otherwise it is an error.

    Raises:
        InputError: There is no deployment, or its certificate cannot be read or has expired.
    """
    from fedssl.app.deploy.deployment import Deployment
    from fedssl.app.deploy.secrets import days_left

    deployment = Deployment.open(folder)
    certificate = deployment.certificates / "server.crt"
    try:
        left = days_left(certificate)
    except (OSError, ValueError) as error:
        raise InputError("--folder", f"{certificate} cannot be read: {error}") from None
    renew = "for a new certificate, make a new deployment: fedssl deploy init --folder ANOTHER"
    if left < 0 and not is_asked:
        raise InputError("--folder", f"{certificate} expired {-left:.0f} days ago", renew)
    if left < DAYS_OF_WARNING:
        when = f"expires in {left:.0f} days" if left >= 0 else f"expired {-left:.0f} days ago"
        say(f"{certificate} {when}; {renew}")
    return deployment


def _refuse_missing_devices(devices: str) -> None:
    """Raise `InputError` if a client's devices are more than this machine has."""
    names = devices.split(",") if devices else []
    num_processes, num_cores = names.count("cpu"), available_cores()
    if num_processes > num_cores:
        problem = f"names {num_processes} cores, but this machine has {num_cores}"
        raise InputError("--devices", problem, f"at most {num_cores}")
    on_gpus = [name for name in names if name.startswith("cuda")]
    if on_gpus:
        import torch

        count = torch.cuda.device_count()
        missing = [name for name in on_gpus if int(name.partition(":")[2] or 0) >= count]
        if missing:
            problem = f"names {missing[0]}, but torch sees {count} GPUs on this machine"
            raise InputError("--devices", problem, "see fedssl doctor")


def _refuse_wrong_clock(server: str, ca: Path) -> None:
    """Compare this host's clock with the gate's, and refuse a clock with which no client can work.

    Raises:
        RunFailed: Flower would refuse every request, or the server's certificate is not valid now.
    """
    from fedssl.app.deploy.admitted import CLOCK_AHEAD, CLOCK_BEHIND
    from fedssl.app.deploy.health import check_health

    answer = check_health(f"https://{server}/health", str(ca))
    if "certificate" in answer.problem and "verify failed" not in answer.problem:
        raise RunFailed(f"{server}: {answer.problem}")
    if answer.problem:
        say(f"{server}: {answer.problem}; the client goes on trying")
    ahead = answer.seconds_ahead
    if ahead is not None and not -CLOCK_BEHIND < ahead < CLOCK_AHEAD + 1:
        raise RunFailed(
            f"{answer.clocks}. Flower refuses a client whose clock is more than {CLOCK_AHEAD:.0f} s ahead or "
            f"{CLOCK_BEHIND:.0f} s behind. Set this host's clock, e.g. by NTP"
        )
    if answer.clocks:
        say(f"{answer.clocks}; a clock more than {CLOCK_AHEAD:.0f} s ahead is refused")


def _mention_public_key(key: Path) -> str:
    """Return a clause that names the public key beside a private key; empty if there is none."""
    public = key.with_name(f"{key.name}.pub")
    return f" (beside this file is {public})" if public.is_file() else ""


def _make_operator(deployment: Any, no_containers: bool) -> Any:
    """Return the operator of a deployment, and the path under which its commands see the deployment's folder."""
    from fedssl.app.deploy.containers import IN_CONTAINERS, OPERATOR, Containers
    from fedssl.app.deploy.operator import Operator
    from fedssl.app.deploy.services import place_on_this_host

    home = deployment.connection.parent
    if no_containers:
        place = place_on_this_host(deployment)
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
        public = deployment.key(number).with_name(f"{name}.pub")
        if not _admit(deployment, operator, at, public, name, number):
            say(f"{name}: was registered already")


def _admit(
    deployment: Any, operator: Any, at: Any, key: Path, name: str, number: int | None
) -> bool:
    """Register a client's public key at the SuperLink and the gate; return False if it was registered before.

    Raises:
        InputError: The name or the number belongs to another client.
        RunFailed: The SuperLink refuses the key.
    """
    from fedssl.app.deploy.roster import Registered, Roster

    roster = Roster(deployment.roster)
    roster.refuse_taken(name, number)
    admitted = deployment.admitted / f"{name}.pub"
    is_new = not admitted.exists()
    if not is_new and admitted.read_bytes() != key.read_bytes():
        raise InputError("--name", f"{name!r} has another key already", "use another name")
    if is_new:
        deployment.write_file(admitted, key.read_bytes())
    try:
        node = operator.register(str(at / "admitted" / admitted.name), name)
    except RunFailed:
        if is_new:
            admitted.unlink()
        raise
    before = roster.read().get(name)
    if node is not None:
        roster.add(name, Registered(node, number))
    elif before is not None and number is not None:
        roster.add(name, Registered(before.node, number))
    elif before is None and number is not None:
        say(f"{name}: its node's id is not known, so another client may use the number {number}")
    return node is not None


def _find_lost_clients(deployment: Any, operator: Any, ran: Collection[str]) -> set[str]:
    """Return and print the names of the clients that ran before but are not connected.

    Args:
        deployment: The deployment.
        operator: The deployment's operator.
        ran: Names of the services that ran before.
    """
    from fedssl.app.deploy.roster import Roster

    if not ran:
        return set()
    roster = Roster(deployment.roster)
    away = {
        roster.name_of(str(node["node-id"]))
        for node in operator.nodes()
        if node["status"] != "online"
    }
    lost = away & set(ran)
    for name in sorted(lost):
        say(f"{name} runs but is not connected; it is started again")
    return lost


def _process_table(deployment: Any, no_containers: bool, away: Collection[str]) -> Table:
    """Return the table of a deployment's processes; `away` names the clients that are not connected."""
    table = Table("process", "state", "starts", show_edge=False)
    if no_containers:
        from fedssl.app.deploy.host import Host

        for state in Host(deployment).states():
            health = {None: "", True: ", healthy", False: ", does not answer"}[state.healthy]
            if state.name in away:
                health = ", but is not connected"
            shown = f"runs{health}" if state.runs else "does not run"
            table.add_row(state.name, shown, str(state.starts))
        return table
    from fedssl.app.deploy.containers import Containers

    for entry in Containers(deployment, say).states():
        name, shown = str(entry["Service"]), str(entry["Status"])
        if name in away and entry.get("State") == "running":
            shown += ", but is not connected"
        table.add_row(name, _plain_cell(shown), "")
    return table


def _ask_gate(deployment: Any) -> Any:
    """Ask a deployment's gate for its health, under the address that this host reaches."""
    from fedssl.app.deploy.health import check_health

    bind = deployment.settings.bind
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)
    url = f"https://{host}:{deployment.settings.port}/health"
    return check_health(url, str(deployment.certificates / "ca.crt"))


def _plain_cell(value: object) -> Text:
    """Return a cell that shows a value as plain text."""
    return Text(str(value))


def _count_connected(operator: Any) -> int:
    return sum(node["status"] == "online" for node in operator.nodes())


def _wait_for_clients(deployment: Any, operator: Any, no_containers: bool) -> None:
    wanted = deployment.settings.clients
    deadline = time.monotonic() + 120
    while (there := _count_connected(operator)) < wanted:
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{there} of {wanted} clients are connected; {_describe_logs(deployment, no_containers)}"
            )
        time.sleep(POLL_SECONDS)


def _describe_logs(deployment: Any, no_containers: bool) -> str:
    if no_containers:
        return f"the processes' logs: {deployment.logs}"
    return f"the processes' logs: docker compose --file {deployment.folder}/docker-compose.yml logs"


def _flwr_log_command(deployment: Any, no_containers: bool, run_id: str) -> str:
    """Return the command that shows the log of a run's server app."""
    from fedssl.app.deploy.containers import OPERATOR

    if no_containers:
        home = shlex.quote(str(deployment.connection.parent))
        return f"FLWR_HOME={home} flwr log {run_id} deployment --show"
    file = shlex.quote(f"{deployment.folder}/docker-compose.yml")
    ask = f"mkdir -p /tmp/flower && cp {OPERATOR}/flower/config.toml /tmp/flower && flwr log {run_id} deployment --show"
    return f"docker compose --file {file} run --rm --no-deps -T run sh -c {shlex.quote(ask)}"


def _deploy_command(command: str, folder: Path, no_containers: bool = False) -> str:
    where = "" if folder == DEPLOYMENT else f" --folder {shlex.quote(str(folder))}"
    return f"fedssl deploy {command}{where}{' --no-containers' if no_containers else ''}"

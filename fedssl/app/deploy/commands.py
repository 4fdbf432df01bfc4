"""``fedssl deploy``: make a deployment, start it, register clients, run experiments, show its status, and end it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedssl.app.commands.arguments import check_files
from fedssl.app.commands.completion import complete_setting
from fedssl.app.commands.with_settings import WithSettings
from fedssl.app.deploy.join import join
from fedssl.app.deploy.options import (
    DEPLOYMENT,
    BadImages,
    Folder,
    NoContainers,
    deploy_command,
    say,
)
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import RunFailed

app = typer.Typer(
    help="Run experiments over real processes, in containers or on this host: TLS, and a key for every client.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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
    bad_images: Annotated[
        BadImages,
        typer.Option(
            help="What clients here do with images of their own that cannot be read: refuse to take part, or skip them."
        ),
    ] = BadImages.REFUSE,
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
    no_containers: NoContainers = None,
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
            "bad_images": bad_images.value,
            "server_data": None
            if server_data is None
            else resolve_existing("--server-data", server_data),
            "allowed_plugins": allowed_plugins,
            "devices": devices,
            "containers": not no_containers,
        }
    )
    # Write the deployment's folder, and its Compose file beside the settings.
    made = Deployment.create(folder, settings)
    remark = "Written by `fedssl deploy init`; its keys and certificates are beside it."
    (folder / "docker-compose.yml").write_text(as_yaml(compose_file(settings), remark))
    say(f"{folder}: certificates, {settings.clients} client keys, docker-compose.yml")
    say(f"  every client needs {made.certificates / 'ca.crt'} and its own key, and no other key")
    say(f"  to start it: {deploy_command('up', folder)}")


@app.command()
@guarded
def up(folder: Folder = DEPLOYMENT, no_containers: NoContainers = None) -> None:
    """Start the server, register and start this deployment's clients, and wait until all are connected."""
    from fedssl.app.deploy.admission import find_lost_clients, register_all, wait_for_clients
    from fedssl.app.deploy.opening import open_with_operator

    opened = open_with_operator(folder, no_containers)
    deployment = opened.deployment
    deployment.refuse_missing_paths()
    deployment.remember(containers=opened.has_containers)
    if opened.has_containers:
        from fedssl.app.deploy.containers import Containers

        containers = Containers(deployment, say)
        ran = {str(e["Service"]) for e in containers.states() if e.get("State") == "running"}
        containers.compose("up", "--detach", "--wait", "superlink", "executor", "gate")
        register_all(opened)
        lost = find_lost_clients(opened, ran)
        if lost:
            containers.compose("restart", *sorted(lost))
        containers.compose("up", "--detach", "--wait")
    else:
        from fedssl.app.deploy.host import Host

        host = Host(deployment)
        ran = {state.name for state in host.states() if state.runs}
        host.refuse_taken_ports([*host.server, *host.clients])
        say("starting superlink, executor and gate on this host")
        host.start(host.server)
        register_all(opened)
        lost = find_lost_clients(opened, ran)
        host.restart([client for client in host.clients if client.name in lost])
        if host.clients:
            say(f"starting {len(host.clients)} clients on this host")
        host.start(host.clients)
    wait_for_clients(opened)
    say(f"up: {deployment.settings.clients} clients connected")
    say(f"  to run an experiment: {deploy_command('run FILE', folder)}")


@app.command()
@guarded
def register(
    key: Annotated[Path, typer.Argument(help="Public key of a client elsewhere (.pub).")],
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = None,
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
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Let this key take the name or the number of another key, which is let out.",
        ),
    ] = False,
) -> None:
    """Register a client that runs elsewhere, by its public key.

    Examples:
      fedssl deploy register bern.pub --number 0

      fedssl deploy register bern.pub --number 0 --replace
    """
    from fedssl.app.deploy.admission import admit, check_client
    from fedssl.app.deploy.opening import open_deployment, open_with_operator
    from fedssl.app.deploy.roster import Roster

    open_deployment(folder)
    called = check_client(key, name)
    opened = open_with_operator(folder, no_containers)
    new = admit(opened, key, called, number, replace=replace)
    entry = Roster(opened.deployment.roster).read().get(called)
    bound = "" if entry is None or entry.number is None else f", as client {entry.number}"
    say(f"{called}: {'registered' if new else 'was registered already'}{bound}")


@app.command(cls=WithSettings)
@guarded
def run(
    file: Annotated[
        Path,
        typer.Argument(
            help="Experiment file (TOML); with --resume also the directory of a run.",
            show_default=False,
        ),
    ],
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a setting, as in fedssl run.", autocompletion=complete_setting
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped or that failed.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, no live screen.")] = False,
) -> None:
    """Run an experiment over the deployment's clients; its record has the same form as a simulation's.

    Examples:
      fedssl deploy run experiments/deployment.toml --set rounds=10

      fedssl deploy run experiments/deployment.toml --set rounds=10 --resume
    """
    check_files([file], settings, runs=True)
    from fedssl.app.deploy.opening import open_deployment, open_with_operator

    deployment = open_deployment(folder)
    from fedssl.app.deploy.running import load_experiment, run_over

    experiment = load_experiment(file, settings or [], deployment, resume=resume)
    opened = open_with_operator(folder, no_containers)
    named = file if file.is_dir() else None
    run_over(opened, experiment, named, resume=resume, plain=plain)


@app.command()
@guarded
def status(folder: Folder = DEPLOYMENT, no_containers: NoContainers = None) -> None:
    """Show the state of every process, the clients by their numbers, and the runs by their directories."""
    from fedssl.app.deploy.opening import open_with_operator
    from fedssl.app.deploy.overview import (
        ask_gate,
        client_table,
        names_away,
        process_table,
        run_table,
    )
    from fedssl.app.deploy.roster import Roster
    from fedssl.app.deploy.submissions import Submissions

    opened = open_with_operator(folder, no_containers, is_asked=True)
    deployment = opened.deployment
    roster = Roster(deployment.roster)
    # The processes are shown even if the SuperLink does not answer; then the reason ends the command.
    unreachable: RunFailed | None = None
    nodes: list[Mapping[str, Any]] = []
    try:
        nodes = opened.operator.nodes()
    except RunFailed as error:
        unreachable = error
    console = Console()
    console.print(process_table(opened, names_away(roster, nodes)))
    answer = ask_gate(opened)
    for warning in filter(None, (answer.problem and f"gate: {answer.problem}", answer.clocks)):
        say(warning)
    if unreachable is not None:
        raise unreachable
    console.print(client_table(roster, nodes))
    console.print(run_table(Submissions(deployment.submissions), opened.operator.runs()))
    say(f"run directories: {deployment.runs}")
    say(opened.describe_logs())
    say(f"the log of a run's server app: {opened.flwr_log_command('ID')}")


@app.command()
@guarded
def down(
    folder: Folder = DEPLOYMENT,
    no_containers: NoContainers = None,
    force: Annotated[
        bool, typer.Option("--force", help="Stop runs that are in progress; they can go on later.")
    ] = False,
) -> None:
    """End all processes, unless a run is in progress; the keys, the database and the runs stay."""
    from fedssl.app.deploy.ending import end_active_runs
    from fedssl.app.deploy.opening import open_with_operator

    opened = open_with_operator(folder, no_containers, is_asked=True)
    end_active_runs(opened, force=force)
    if opened.has_containers:
        from fedssl.app.deploy.containers import Containers

        Containers(opened.deployment, say).compose("--profile", "operator", "down")
    else:
        from fedssl.app.deploy.host import Host

        Host(opened.deployment).stop()
    say("down")


app.command()(join)

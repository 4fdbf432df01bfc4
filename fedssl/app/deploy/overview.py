"""The tables of `fedssl deploy status`: processes, clients and runs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedssl.app.deploy.containers import Containers
from fedssl.app.deploy.health import Answer, check_health
from fedssl.app.deploy.host import Host
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.options import say
from fedssl.app.deploy.roster import Roster
from fedssl.app.deploy.submissions import Submissions
from fedssl.core.text import without_tracebacks

Nodes = Sequence[Mapping[str, Any]]
"""What Flower says about each client."""


def process_table(opened: Opened, away: Collection[str]) -> Table:
    """Return the table of a deployment's processes.

    Args:
        opened: The deployment.
        away: Names of the clients that are not connected.
    """
    if opened.has_containers:
        table = Table("process", "state", show_edge=False)
        for entry in Containers(opened.deployment, say).states():
            name, shown = str(entry["Service"]), str(entry["Status"])
            if name in away and entry.get("State") == "running":
                shown += ", but is not connected"
            table.add_row(name, _plain_cell(shown))
        return table
    table = Table("process", "state", "starts", show_edge=False)
    for state in Host(opened.deployment).states():
        health = {None: "", True: ", healthy", False: ", does not answer"}[state.healthy]
        if state.name in away:
            health = ", but is not connected"
        shown = f"runs{health}" if state.runs else "does not run"
        table.add_row(state.name, shown, str(state.starts))
    return table


def names_away(roster: Roster, nodes: Nodes) -> set[str]:
    """Return the names of the clients that are not connected."""
    return {roster.name_of(str(n["node-id"])) for n in nodes if n["status"] != "online"}


def client_table(roster: Roster, nodes: Nodes) -> Table:
    """Return the table of a deployment's clients, by their numbers.

    A client may have no number of its own: then it may use any that is free. A client that Flower's own command
    registered has no name here, and is called by the id of its node. Clients that were let out are left out.
    """
    table = Table("number", "client", "status", "since", show_edge=False)
    entries = roster.read()
    rows = []
    for node in nodes:
        if node["status"] == "unregistered":
            continue
        name = roster.name_of(str(node["node-id"]))
        number = entries[name].number if name else None
        called = name or f"node {node['node-id']}"
        cells = ("any" if number is None else number, called, node["status"], node["online-at"])
        rows.append(((number is None, number or 0, called), cells))
    for _, cells in sorted(rows):
        table.add_row(*map(_plain_cell, cells))
    return table


def run_table(submissions: Submissions, runs: Nodes) -> Table:
    """Return the table of a deployment's runs, by their run directories; the id is Flower's."""
    records = submissions.read()
    table = Table(show_edge=False)
    # A long reason must not break the names and ids of the runs, which are there to be copied.
    table.add_column("run", no_wrap=True)
    table.add_column("status")
    table.add_column("id", no_wrap=True)
    for entry in runs:
        details = without_tracebacks(str(entry.get("status-details") or "")).replace("N/A", "")
        status = f"{entry['status']}: {details}" if details else entry["status"]
        record = records.get(str(entry["run-id"]), "?")
        table.add_row(*map(_plain_cell, (record, status, entry["run-id"])))
    return table


def ask_gate(opened: Opened) -> Answer:
    """Ask a deployment's gate for its health, under the address that this host reaches."""
    bind = opened.deployment.settings.bind
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)
    url = f"https://{host}:{opened.deployment.settings.port}/health"
    return check_health(url, str(opened.deployment.certificates / "ca.crt"))


def _plain_cell(value: object) -> Text:
    """Return a cell that shows a value as plain text."""
    return Text(str(value), overflow="fold")

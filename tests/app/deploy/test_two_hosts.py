"""The page's way to two hosts, as processes on this host: the commands of docs/deploy.md, each on its host's folder."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedssl.app.deploy.deployment import Deployment
from tests.docs.pages import ROOT, blocks
from tests.helpers import small_toml
from tests.ports import give_free_ports

pytestmark = pytest.mark.timeout(600)

PAGE = ROOT / "docs" / "deploy.md"
HEADING = "## On two hosts\n"


def commands_of_the_page() -> list[str]:
    """Return the commands of the page's section on two hosts, in order."""
    text = PAGE.read_text()
    first = text[: text.index(HEADING)].count("\n")
    last = text[: text.index("\n## ", text.index(HEADING))].count("\n")
    lines = [ln for b in blocks(PAGE) if first < b.line < last for ln in b.text.splitlines()]
    return [line.partition("  #")[0] for line in lines if line.startswith("fedssl deploy ")]


def on_this_host(line: str, **replaced: object) -> list[str]:
    """Return a command of the page with this host's names in place of the page's."""
    for old, new in replaced.items():
        line = line.replace({"name": "fed.example.org", "port": "9443", "data": "/srv/photos"}[old], str(new))  # fmt: skip
    return [sys.executable, "-m", *shlex.split(line)]


def in_folder(folder: Path, parts: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(parts, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def hosts(tmp_path):
    """Return the folders of the server's and of the client's host; nothing that was started outlives the test."""
    server, client = tmp_path / "server", tmp_path / "client"
    for host in (server, client):
        host.mkdir()
    joined: list[subprocess.Popen[str]] = []
    yield server, client, joined
    for process in joined:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    if (server / "deployment").exists():
        in_folder(server, on_this_host("fedssl deploy down"))


def write_photos(folder: Path) -> None:
    for number in range(20):
        path = folder / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 100 * (number % 2), np.uint8)).save(path)


def test_a_client_elsewhere_joins_by_the_commands_of_the_page(hosts, tmp_path):
    server, client, joined = hosts
    init, up, join, _, register, _ = commands_of_the_page()
    # On the server's host.
    in_folder(server, on_this_host(init, name="127.0.0.1"))
    give_free_ports(server / "deployment")
    deployment = Deployment.open(server / "deployment")
    in_folder(server, on_this_host(f"{up} --no-containers"))
    # On the client's host: the first time, the command makes a key and stops.
    photos = tmp_path / "photos"
    write_photos(photos)
    shutil.copy(deployment.certificates / "ca.crt", client)
    where = {"name": "127.0.0.1", "port": deployment.settings.port, "data": photos}
    parts = on_this_host(join, **where)
    said = in_folder(client, parts)
    assert register.strip() in said
    # The key travels to the server, which lets it in. The other commands know that there are no containers.
    shutil.copy(client / "bern.pub", server)
    assert "registered, as client 0" in in_folder(server, on_this_host(register))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (client / "log").open("w") as log:
        joined.append(subprocess.Popen(parts, cwd=client, env=environment, stdout=log, stderr=log, text=True))  # fmt: skip
    deadline = time.monotonic() + 120
    while "online" not in (seen := in_folder(server, on_this_host("fedssl deploy status"))):
        assert time.monotonic() < deadline, seen + (client / "log").read_text()
    assert any(line.split()[:5:2] == ["0", "bern", "online"] for line in seen.splitlines())
    # A run whose experiment names the server's images beside it; the client has its own, and logs what it sends.
    write_photos(server / "reference")
    federation = {"clients": 1, "sample": 1, "private": True}
    data = {"source": "folder:reference", "train_size": None}
    small_toml(server / "e.toml", rounds=1, federation=federation, data=data, method="supervised")
    said = in_folder(server, on_this_host("fedssl deploy run e.toml --plain"))
    assert "clients 1/1" in said
    lines = [json.loads(line) for line in (client / "bern.client" / "sent.jsonl").read_text().splitlines()]  # fmt: skip
    assert [line["answer_to"] for line in lines] == ["query", "train"]
    assert lines[1]["records"]["arrays"]

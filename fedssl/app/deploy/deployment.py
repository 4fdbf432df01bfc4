"""A deployment: a folder with its settings and with the files that its processes need."""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator

from fedssl import __version__
from fedssl.app.deploy.roster import ROSTER
from fedssl.app.deploy.secrets import (
    is_address,
    write_certificates,
    write_node_key,
    write_private,
    write_shared_secret,
)
from fedssl.core.errors import InputError
from fedssl.core.findings import Form, input_error
from fedssl.core.registry import Section

SUPERLINK_PORT, GATE_PORT, FIRST_CLIENT_PORT = 8000, 9443, 9100

CONTAINERS_USER = 10001
"""Containers run as the user with this number if root made the deployment."""

ALLOWED_PLUGINS = r"^[\w., ]*$"
"""The form of a list of modules. It has no character that could end the quotation in a node's config."""

DEVICES = r"^(cuda|(cpu|cuda:\d+)(,(cpu|cuda:\d+))*)?$"
"""The form of a client's devices."""


class Settings(Section):
    """The settings of a deployment, as in its ``deployment.toml``.

    Ports are ports of the host. Inside its container, every service has a port of its own.
    """

    clients: int = Field(
        2, ge=0, le=10_000, description="number of clients with a key and a service here"
    )
    names: tuple[str, ...] = Field(
        (), description="host names or addresses by which clients reach this host"
    )
    bind: str = Field("127.0.0.1", description="address at which the gate listens on the host")
    port: int = Field(
        GATE_PORT, ge=1, le=65535, description="the gate's port, the only port that clients need"
    )
    superlink_port: int = Field(
        SUPERLINK_PORT, ge=1, le=65535, description="the SuperLink's port, on the loopback only"
    )
    client_port: int = Field(
        FIRST_CLIENT_PORT,
        ge=1,
        le=65535,
        description="the first client's own port, on the loopback only; each next client has the next port",
    )
    server_data: str | None = Field(
        None, description="path of the server's images; the experiment names the same path"
    )
    containers: bool = Field(
        True, description="whether the processes run in containers; otherwise they run on this host"
    )
    data: Mapping[int, str] = Field(
        default_factory=dict, description="for each client number, a folder or .npz of own images"
    )
    bad_images: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what these clients do with images of their own that cannot be read: refuse to take part, or leave "
        "them out",
    )
    allowed_plugins: Annotated[str, Form("names of modules, separated by commas")] = Field(
        "",
        pattern=ALLOWED_PLUGINS,
        description="modules that experiments may name and these clients import, separated by commas",
    )
    devices: Annotated[
        str, Form("cuda, or cpu and cuda:NUMBER separated by commas without spaces")
    ] = Field(
        "",
        pattern=DEVICES,
        description="devices on which each client here trains, with commas between them: cpu,cpu or cuda:0,cuda:1; several "
        "train a client together; empty: a GPU if there is one, else the CPU",
    )

    @property
    def node_config(self) -> dict[str, str | float]:
        """The settings in the config of every node here, beside the node's number and data."""
        given = {
            "allowed-plugins": self.allowed_plugins,
            "device": self.devices,
            "bad-images": self.bad_images if self.bad_images == "skip" else "",
        }
        return {name: value for name, value in given.items() if value}

    @field_validator("names")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_address(name) and not re.fullmatch(
                r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name
            ):
                raise ValueError(
                    f"{name!r} is not a host name or address; give it without a port or https://"
                )
        return names

    @field_validator("bind")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if not is_address(address):
            raise ValueError(
                f"{address!r} is not an address; 127.0.0.1 lets only this host in, 0.0.0.0 all hosts"
            )
        return address


class Deployment:
    """The folder of a deployment, and the paths of everything in it.

    Args:
        folder: The deployment's folder.
        settings: The deployment's settings.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    @classmethod
    def create(cls, folder: Path, settings: Settings) -> "Deployment":
        """Write the certificates, keys, secrets and settings of a new deployment.

        Raises:
            InputError: The folder is not empty; nothing is overwritten.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                "--folder", f"{folder} exists and is not overwritten", "name another folder"
            )
        made = cls(folder.absolute(), settings)
        refuse_quotation("--folder", str(made.folder))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # only the owner may read logs, the database and submitted experiments
        (folder / ".gitignore").write_text("*\n")  # keys must not get into a repository
        write_certificates(made.certificates, settings.names)
        made.key(0).parent.mkdir()
        for client in range(settings.clients):
            write_node_key(made.key(client))
            made.client(client).mkdir(mode=0o700, parents=True)
        write_shared_secret(made.executor_secret)
        subs = (made.superlink, made.runs, made.logs, made.processes, made.submitted, made.admitted)
        for sub in subs:
            sub.mkdir(mode=0o700)
        made.app.mkdir()
        made.write_app()
        made.connection.parent.mkdir()
        table = settings.model_dump(mode="json", exclude={"data"}, exclude_none=True)
        table = {"version": __version__, **table}
        table["data"] = {str(client): path for client, path in settings.data.items()}
        made.file.write_text(tomli_w.dumps(table))
        if os.getuid() == 0:  # containers do not run as root, but must read their keys
            for path in (folder, *folder.rglob("*")):
                os.chown(path, CONTAINERS_USER, CONTAINERS_USER)
        return made

    @classmethod
    def open(cls, folder: Path) -> "Deployment":
        """Return the deployment in a folder.

        Raises:
            InputError: The folder holds no deployment, or its ``deployment.toml`` is wrong.
        """
        folder = folder.absolute()
        file = folder / "deployment.toml"
        try:
            table = tomllib.loads(file.read_text())
        except FileNotFoundError:
            raise InputError(
                "--folder", f"there is no deployment in {folder}", "make one: fedssl deploy init"
            ) from None
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InputError("--folder", f"{file} cannot be read: {error}") from None
        table.pop("version", None)
        try:
            opened = cls(folder, make_settings(table))
        except InputError as error:
            raise error.within(f"{file}: ") from None
        former = (
            folder / ROSTER
        )  # where another version of fedssl kept the roster, out of the gate's sight
        if former.exists() and not opened.roster.exists():
            former.replace(opened.roster)
        return opened

    @property
    def file(self) -> Path:
        """The file of the deployment's settings, ``deployment.toml``."""
        return self.folder / "deployment.toml"

    @property
    def certificates(self) -> Path:
        """Folder of the certificates: ``ca.crt`` for everybody, ``server.crt`` and ``server.key`` for the server."""
        return self.folder / "certificates"

    def key(self, client: int) -> Path:
        """Return the file of a client's private key; the file of the public key is beside it."""
        return self.folder / "keys" / f"client-{client}"

    def client(self, client: int) -> Path:
        """Return a client's own folder: what it keeps between rounds, and the log of what it sent."""
        return self.folder / "clients" / f"client-{client}"

    @property
    def admitted(self) -> Path:
        """Folder of the public keys of registered clients and of the roster, by which the gate recognizes clients."""
        return self.folder / "admitted"

    @property
    def roster(self) -> Path:
        """File of the registered clients: names, node ids and numbers."""
        return self.admitted / ROSTER

    @property
    def executor_secret(self) -> Path:
        """File of the secret by which the SuperLink recognizes the process that runs apps."""
        return self.folder / "executor.secret"

    @property
    def superlink(self) -> Path:
        """Folder of the SuperLink's database."""
        return self.folder / "superlink"

    @property
    def runs(self) -> Path:
        """Folder of the run directories."""
        return self.folder / "runs"

    @property
    def logs(self) -> Path:
        """Folder of the logs of processes on this host."""
        return self.folder / "logs"

    @property
    def processes(self) -> Path:
        """Folder of the files that say which processes run on this host."""
        return self.folder / "processes"

    @property
    def app(self) -> Path:
        """Folder of the submitted app, which holds names only; every host runs its own installed code."""
        return self.folder / "app"

    @property
    def submitted(self) -> Path:
        """Folder of the submitted experiments, one file for each run."""
        return self.folder / "submitted"

    @property
    def connection(self) -> Path:
        """Flower's file that says how operators reach the SuperLink."""
        return self.folder / "flower" / "config.toml"

    @property
    def submissions(self) -> Path:
        """File of the submitted runs: Flower's run ids and their run directories."""
        return self.folder / "submitted.json"

    def refuse_missing_paths(self) -> None:
        """Raise `InputError` if a path is gone that the clients or the server here need, although `init` found it."""
        settings = self.settings
        needed = [(f"{self.file}: data.{n}", Path(path)) for n, path in settings.data.items()]
        if settings.server_data is not None:
            needed.append((f"{self.file}: server_data", Path(settings.server_data)))
        needed += [("--folder", self.client(number)) for number in range(settings.clients)]
        gone = [(setting, path) for setting, path in needed if not path.exists()]
        if gone:
            setting, path = gone[0]
            more = f" (and at {len(gone) - 1} more paths)" if len(gone) > 1 else ""
            raise InputError(setting, f"there is nothing at {path}{more}", "put it back")

    def remember(self, *, containers: bool) -> None:
        """Write into ``deployment.toml`` whether the processes run in containers; the rest of the file stays as it is."""
        text = self.file.read_text()
        line = f"containers = {str(containers).lower()}"
        changed, count = re.subn(r"(?m)^containers\s*=.*$", line, text)
        if not count:
            changed = f"{line}\n{text}"
        if changed != text:
            self.file.write_text(changed)

    def write_app(self) -> None:
        """Write the app that `fedssl deploy run` submits; another version of fedssl may have made the deployment."""
        file, text = self.app / "pyproject.toml", _APP.format(version=__version__)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)

    def write_file(self, path: Path, content: bytes) -> None:
        """Write a new file that only the deployment's owner can read.

        Raises:
            FileExistsError: The file exists already.
        """
        write_private(path, content)
        owner = self.file.stat()
        if os.getuid() == 0:  # containers run as the owner, and must read the file
            os.chown(path, owner.st_uid, owner.st_gid)

    def write_connection(self, superlink: str, authority: str) -> None:
        """Write Flower's file that says how operators reach the SuperLink.

        Args:
            superlink: The SuperLink's address, as HOST:PORT.
            authority: File of the certificate authority.
        """
        table = {"address": superlink, "root-certificates": authority}
        text = tomli_w.dumps({"superlink": {"default": NAME, NAME: table}})
        self.connection.write_text(text)


NAME = "deployment"
"""Flower's commands call this SuperLink by this name."""

_APP = """\
# `fedssl deploy run` submits this app. It holds no code: every host runs the code that is installed there.
[project]
name = "fedssl-deployment"
version = "{version}"
description = "An experiment of fedssl"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedssl"

[tool.flwr.app.components]
serverapp = "fedssl.server.app:app"
clientapp = "fedssl.clients.client_app:app"

[tool.flwr.app.config]
experiment = ""
experiment-json = ""
run-directory = ""
resume = false
nodes = ""
"""


def make_settings(table: Mapping[str, object]) -> Settings:
    """Return the settings of a deployment from a table.

    Raises:
        InputError: A setting is wrong, or there are images for a client that does not exist.
    """
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        raise input_error(error, Settings) from None
    unknown = sorted(number for number in settings.data if number >= settings.clients)
    if unknown:
        raise InputError(
            "--data",
            f"there is no client {unknown[0]} among {settings.clients} clients",
            "clients count from 0",
        )
    return settings


def read_data_options(settings: Sequence[str]) -> dict[int, str]:
    """Return the paths of clients' images by the clients' numbers, from texts ``NUMBER=PATH``.

    Raises:
        InputError: A text has another form, or its path does not exist.
    """
    found: dict[int, str] = {}
    for setting in settings:
        number, equals, path = setting.partition("=")
        if not equals or not number.isdecimal() or not path:
            raise InputError(
                "--data", f"{setting!r} is not NUMBER=PATH", "e.g. --data 0=/srv/images"
            )
        where = resolve_images("--data", Path(path))
        refuse_quotation("--data", where)
        found[int(number)] = where
    return found


def refuse_quotation(option: str, path: str) -> None:
    """Raise `InputError` if a path that an option names has a quotation mark: Flower cannot take it (flwr 1.41)."""
    if '"' in path:
        raise InputError(
            option, f"{path!r} has a quotation mark in its name", "rename the file or folder"
        )


def resolve_images(option: str, path: Path) -> str:
    """Return the absolute path of a client's own images; raise `InputError` if it is neither a folder nor an npz file."""
    where = resolve_existing(option, path)
    if not path.is_dir() and path.suffix.lower() != ".npz":
        raise InputError(option, f"{path} is neither a folder of images nor an .npz file")
    return where


def resolve_existing(option: str, path: Path) -> str:
    """Return the absolute path of a file or folder that an option names; raise `InputError` if there is nothing."""
    if not path.exists():
        raise InputError(option, f"there is nothing at {path.absolute()}")
    return str(path.resolve())

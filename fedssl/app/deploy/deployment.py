"""A deployment: a folder with what its processes need, and what was said when it was made."""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w
from pydantic import Field, ValidationError, field_validator

from fedssl import __version__
from fedssl.app.deploy.secrets import (
    is_address,
    write_certificates,
    write_node_key,
    write_private,
    write_shared_secret,
)
from fedssl.core.errors import InputError
from fedssl.core.registry import Section, input_error

SUPERLINK_PORT, GATE_PORT, FIRST_CLIENT_PORT = 8000, 9443, 9100

CONTAINERS_USER = 10001
"""Who containers run as where the deployment was made by root."""


ALLOWED_PLUGINS = r"^[\w., ]*$"
"""Form of a list of modules: no character in it can end the quotation in a node's config."""


class Settings(Section):
    """What a deployment is, as its ``deployment.toml`` says.

    Ports are those of the host; in containers every service has its own, inside.
    """

    clients: int = Field(2, ge=0, le=10_000, description="clients with a key and a service here")
    names: tuple[str, ...] = Field(
        (), description="host names or addresses that clients reach it by"
    )
    bind: str = Field("127.0.0.1", description="address at which the gate listens on the host")
    port: int = Field(
        GATE_PORT, ge=1, le=65535, description="the gate's port: all that clients need"
    )
    superlink_port: int = Field(
        SUPERLINK_PORT, ge=1, le=65535, description="the SuperLink's port, on the loopback only"
    )
    client_port: int = Field(
        FIRST_CLIENT_PORT,
        ge=1,
        le=65535,
        description="first of the clients' own ports, on the loopback only",
    )
    server_data: str | None = Field(
        None, description="the server's images, which the experiment names by the same path"
    )
    data: Mapping[int, str] = Field(
        default_factory=dict, description="client number -> folder or .npz of its own images"
    )
    allowed_plugins: str = Field(
        "",
        pattern=ALLOWED_PLUGINS,
        description="modules that an experiment may name and these clients import, with commas between",
    )

    @property
    def node_config(self) -> dict[str, str | float]:
        """What the config of every node here says beside its number and its data."""
        return {"allowed-plugins": self.allowed_plugins} if self.allowed_plugins else {}

    @field_validator("names")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_address(name) and not re.fullmatch(
                r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name
            ):
                raise ValueError(f"{name!r} is no host name or address; without a port or https://")
        return names

    @field_validator("bind")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if not is_address(address):
            raise ValueError(
                f"{address!r} is no address; 127.0.0.1 is this host, 0.0.0.0 everybody"
            )
        return address


class Deployment:
    """Where everything of a deployment is.

    Args:
        folder: Its folder.
        settings: What it is.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    @classmethod
    def create(cls, folder: Path, settings: Settings) -> "Deployment":
        """Write a new deployment: certificates, keys, secrets and settings.

        Raises:
            InputError: There is something in the folder already; nothing is overwritten.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                "--folder", f"{folder} is there already, and is not overwritten", "name another"
            )
        made = cls(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # logs, the database and what is submitted are the owner's alone
        (folder / ".gitignore").write_text("*\n")  # keys must not get into a repository
        write_certificates(made.certificates, settings.names)
        made.key(0).parent.mkdir()
        for client in range(settings.clients):
            write_node_key(made.key(client))
        write_shared_secret(made.executor_secret)
        subs = (made.superlink, made.runs, made.logs, made.processes, made.submitted, made.admitted)
        for sub in subs:
            sub.mkdir(mode=0o700)
        made.app.mkdir()
        (made.app / "pyproject.toml").write_text(_APP.format(version=__version__))
        made.connection.parent.mkdir()
        table = settings.model_dump(mode="json", exclude={"data"}, exclude_none=True)
        table = {"version": __version__, **table}
        table["data"] = {str(client): path for client, path in settings.data.items()}
        made.file.write_text(tomli_w.dumps(table))
        if os.getuid() == 0:  # containers do not run as root, and must read their keys
            for path in (folder, *folder.rglob("*")):
                os.chown(path, CONTAINERS_USER, CONTAINERS_USER)
        return made

    @classmethod
    def open(cls, folder: Path) -> "Deployment":
        """Return the deployment in a folder.

        Raises:
            InputError: There is none, or what it says of itself is wrong.
        """
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
            return cls(folder, settings_of(table))
        except InputError as error:
            raise error.within(f"{file}: ") from None

    @property
    def file(self) -> Path:
        """What it says of itself."""
        return self.folder / "deployment.toml"

    @property
    def certificates(self) -> Path:
        """``ca.crt`` for everybody, ``server.crt`` and ``server.key`` for the server."""
        return self.folder / "certificates"

    def key(self, client: int) -> Path:
        """Return a client's private key; its public half is beside it."""
        return self.folder / "keys" / f"client-{client}"

    @property
    def admitted(self) -> Path:
        """The public keys of registered clients, by which the gate knows clients."""
        return self.folder / "admitted"

    @property
    def roster(self) -> Path:
        """The registered clients: names, node ids and numbers."""
        return self.folder / "registered.json"

    @property
    def executor_secret(self) -> Path:
        """By which the SuperLink knows who runs apps."""
        return self.folder / "executor.secret"

    @property
    def superlink(self) -> Path:
        """The SuperLink's database."""
        return self.folder / "superlink"

    @property
    def runs(self) -> Path:
        """Run directories."""
        return self.folder / "runs"

    @property
    def logs(self) -> Path:
        """What processes on this host say."""
        return self.folder / "logs"

    @property
    def processes(self) -> Path:
        """Which processes run on this host."""
        return self.folder / "processes"

    @property
    def app(self) -> Path:
        """The app that is submitted: names only, for the code is what every host has installed."""
        return self.folder / "app"

    @property
    def submitted(self) -> Path:
        """What was submitted, a file a run."""
        return self.folder / "submitted"

    @property
    def connection(self) -> Path:
        """Flower's file that says how operators reach the SuperLink."""
        return self.folder / "flower" / "config.toml"

    def write_file(self, path: Path, content: bytes) -> None:
        """Write a new file that only the deployment's owner can read.

        Raises:
            FileExistsError: It is there already.
        """
        write_private(path, content)
        owner = self.file.stat()
        if os.getuid() == 0:  # containers run as the owner, and must read it
            os.chown(path, owner.st_uid, owner.st_gid)

    def write_connection(self, superlink: str, authority: str) -> None:
        """Say how operators reach the SuperLink.

        Args:
            superlink: As HOST:PORT.
            authority: File of the certificate authority.
        """
        table = {"address": superlink, "root-certificates": authority}
        text = tomli_w.dumps({"superlink": {"default": NAME, NAME: table}})
        self.connection.write_text(text)


NAME = "deployment"
"""What Flower's commands call this SuperLink."""

_APP = """\
# What `fedssl deploy run` submits. It holds no code: every host runs what is installed there.
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
nodes = ""
"""


def settings_of(table: Mapping[str, object]) -> Settings:
    """Return what a deployment is to be.

    Raises:
        InputError: Something of it cannot be.
    """
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        raise input_error(error, Settings) from None
    unknown = sorted(number for number in settings.data if number >= settings.clients)
    if unknown:
        raise InputError(
            "--data", f"there is no client {unknown[0]} of {settings.clients}", "they count from 0"
        )
    return settings


def data_of(settings: Sequence[str]) -> dict[int, str]:
    """Read ``NUMBER=PATH`` settings.

    Raises:
        InputError: One of them is something else, or a path is not there.
    """
    found: dict[int, str] = {}
    for setting in settings:
        number, equals, path = setting.partition("=")
        if not equals or not number.isdecimal() or not path:
            raise InputError(
                "--data", f"{setting!r} is not NUMBER=PATH", "e.g. --data 0=/srv/images"
            )
        where = existing("--data", Path(path))
        if '"' in path:  # Flower's command line has no way to write it (1.41)
            raise InputError("--data", f"{path!r} has a quotation mark in its name", "rename it")
        found[int(number)] = where
    return found


def existing(option: str, path: Path) -> str:
    """Return where a path leads; raise `InputError` if there is nothing."""
    if not path.exists():
        raise InputError(option, f"there is nothing at {path}")
    return str(path.resolve())

"""`fedssl deploy join`: run a client of a deployment on another host."""

import os
import re
import shlex
import signal
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fedssl.app.deploy.options import BadImages, say
from fedssl.app.guard import guarded
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.machine import available_cores

REFUSED_PAUSE = 10.0
"""A client whose key is refused tries again after this many seconds."""


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
    bad_images: Annotated[
        BadImages,
        typer.Option(
            metavar="WORD",
            help="What to do with images under --data that cannot be read: `refuse` to take part, or `skip` them.",
        ),
    ] = BadImages.REFUSE,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="This client's folder: what it keeps between rounds, and the log of what it sent; unset: KEY.client."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Port for this client's own use, on the loopback; unset: a free port.",
        ),
    ] = None,
    privacy_clipping_norm: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Largest privacy.clipping_norm that this client accepts.",
        ),
    ] = None,
    privacy_noise_multiplier: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Least privacy.noise_multiplier with which this client adds noise.",
        ),
    ] = None,
    privacy_rounds: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            help="Most requests that this client answers, over all runs together.",
        ),
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
      fedssl deploy join fed.example.org:9443 --number 0 --key bern --ca ca.crt --data /srv/photos
    """
    from fedssl.app.deploy.deployment import (
        ALLOWED_PLUGINS,
        DEVICES,
        refuse_quotation,
        resolve_images,
    )
    from fedssl.app.deploy.keeper import PAUSE, keep
    from fedssl.app.deploy.own_number import find_false_number
    from fedssl.app.deploy.ports import find_free_ports
    from fedssl.app.deploy.secrets import write_node_key
    from fedssl.app.deploy.services import (
        LOST,
        REFUSED,
        WRONG_NUMBER,
        client_service,
        environment_for_flower,
        with_this_package,
    )

    _refuse_wrong_address(server)
    if number < 0:
        raise InputError("--number", f"is {number}", "clients count from 0")
    # Without a key: make one, which the deployment must register first.
    if not key.exists():
        _refuse_public_key(key)
        write_node_key(key)
        say(
            f"{key}: made. Send {key}.pub to the deployment's operator, who registers it: "
            f"fedssl deploy register {key.name}.pub --number {number}"
        )
        return
    # Refuse what would fail only later: wrong files, a wrong list of modules, a wrong clock.
    _refuse_no_authority(ca)
    _refuse_no_private_key(key)
    if data is not None:
        resolve_images("--data", data)
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
    _refuse_taken_port(port)
    limits: dict[str, float | None] = {
        "privacy-clipping-norm": privacy_clipping_norm,
        "privacy-noise-multiplier": privacy_noise_multiplier,
        "privacy-rounds": privacy_rounds,
    }
    floor = {name: limit for name, limit in limits.items() if limit is not None}
    _refuse_senseless_floor(floor)
    _refuse_wrong_server(server, ca)
    if problem := find_false_number(server, ca, key, number):
        raise InputError("--number", problem, "join with that number")
    # Start the SuperNode, and start it again whenever it is lost.
    own = None if data is None else data.absolute()
    home = (folder or key.with_name(f"{key.name}.client")).absolute()
    for option, path in (("--data", own), ("--folder", home)):
        refuse_quotation(option, str(path))
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("--folder", f"{home} cannot be made: {error.strerror}") from None
    skips = bad_images.value if bad_images is BadImages.SKIP else ""
    texts = {"allowed-plugins": allowed_plugins, "device": devices, "bad-images": skips}
    further: dict[str, str | float] = {**floor} | {
        name: text for name, text in texts.items() if text
    }
    own_port = find_free_ports(1)[0] if port is None else port
    service = client_service(
        sys.executable, number, server, ca.absolute(), key.absolute(), own_port, home, own, further
    )
    say(f"$ {shlex.join(service.command)}")
    os.environ.update(with_this_package(environment_for_flower()))

    told = False

    def pause_after(starts: int, code: int) -> float | None:
        # A refused key may be registered later, and Flower lets a lost client in again only after about a minute (1.41).
        nonlocal told
        if code == REFUSED:
            if not told:
                say(_explain_refusal(server, key, number))
            told = True
            return REFUSED_PAUSE
        told = False
        # A number that is another's, and an error at the first start, are the user's: they end the client.
        if code == WRONG_NUMBER:
            return None
        return None if starts == 1 and code not in (LOST, -signal.SIGKILL) else PAUSE

    code = keep(list(service.command), lambda process, starts: None, pause_after)
    if code not in (0, -signal.SIGTERM):
        raise RunFailed(f"the client ended with exit code {code}; the reason is printed above")


def _explain_refusal(server: str, key: Path, number: int) -> str:
    """Return what to do about a refused key, and that this client goes on trying."""
    return (
        f"{server} does not let this client in. If its key is not registered yet, send {key}.pub to the deployment's "
        f"operator, who runs: fedssl deploy register {key.name}.pub --number {number}. If another process uses the "
        f"key, end that process. This client goes on trying every {REFUSED_PAUSE:g} s; Ctrl-C ends it"
    )


def _refuse_wrong_address(server: str) -> None:
    """Raise `InputError` if the gate's address is not HOST:PORT, as Flower takes it."""
    host, _, port = server.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535
    if not is_port or not re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]", host):
        raise InputError("SERVER", f"{server!r} is not HOST:PORT", "e.g. fed.example.org:9443")


def _refuse_no_authority(ca: Path) -> None:
    """Raise `InputError` if a file holds no certificate."""
    remedy = "give the deployment's certificates/ca.crt"
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise InputError("--ca", f"{ca} holds no certificate", remedy) from None
    except FileNotFoundError:
        raise InputError("--ca", f"there is nothing at {ca.absolute()}", remedy) from None
    except OSError as error:
        raise InputError("--ca", f"{ca} cannot be read: {error.strerror}", remedy) from None


def _refuse_public_key(key: Path) -> None:
    """Raise `InputError` if a path has the name of a public key."""
    if key.suffix == ".pub":
        problem = f"{key} is the name of a public key"
        raise InputError("--key", problem, f"name the private key: {key.with_suffix('')}")


def _refuse_no_private_key(key: Path) -> None:
    """Raise `InputError` if a file holds no private key that Flower takes."""
    from fedssl.app.deploy.own_number import read_private_key

    try:
        read_private_key(key)
    except OSError as error:
        raise InputError("--key", f"{key} cannot be read: {error.strerror}") from None
    except ValueError:
        _refuse_public_key(key)
        raise InputError(
            "--key",
            f"{key} is not a client's private key",
            "give the key that `fedssl deploy join` made (ECDSA, without a password), or the path of a new one",
        ) from None


def _refuse_taken_port(port: int | None) -> None:
    """Raise `InputError` if a port that the user names is none, or is another process's."""
    from fedssl.app.deploy.ports import is_free

    if port is None:
        return
    remedy = "name another port, or leave the option out: then a free port is chosen"
    if not 1 <= port <= 65535:
        raise InputError(
            "--port", f"{port} is not a port, which is a number from 1 to 65535", remedy
        )
    if not is_free(port):
        raise InputError("--port", f"{port} is taken by another process on this host", remedy)


def _refuse_senseless_floor(floor: Mapping[str, float]) -> None:
    """Raise `InputError` if the client's own privacy settings make no sense; they are named as in a node's config."""
    if floor:  # the settings of an experiment are imported only where they are needed
        from fedssl.clients.floor import Floor

        try:
            Floor.of(floor)
        except InputError as error:
            raise error.within("--") from None


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


def _refuse_wrong_server(server: str, ca: Path) -> None:
    """Ask the gate for its health, and refuse a certificate or a clock with which no client can work.

    Raises:
        InputError: The server's certificate is not of the given authority, or not for the given address.
        RunFailed: Flower would refuse every request, or the server's certificate is not valid now.
    """
    from fedssl.app.deploy.admitted import CLOCK_AHEAD, CLOCK_BEHIND
    from fedssl.app.deploy.health import check_health

    answer = check_health(f"https://{server}/health", str(ca))
    if answer.is_distrusted:
        raise InputError(
            "--ca",
            f"{ca} does not verify the server at {server}: {answer.problem}",
            "give the ca.crt of that server's deployment, and an address that `init --name` named",
        )
    if "certificate" in answer.problem:
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

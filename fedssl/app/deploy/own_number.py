"""Ask a deployment's gate whether a client may have the number that it was given, before the client starts."""

import base64
import datetime
import ssl
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedssl.app.deploy.admitted import KEY, SIGNATURE, TIMESTAMP, header_of
from fedssl.core.text import one_line

SECONDS = 5.0
"""The gate has this many seconds to answer."""


def find_false_number(server: str, authority: Path, key: Path, number: int) -> str:
    """Say why a client may not have a number; empty if it may, or if no gate says so, e.g. because the key is not registered.

    Args:
        server: The gate's address, as HOST:PORT.
        authority: The deployment's ``ca.crt``.
        key: The client's private key.
        number: The number that the client was given.
    """
    try:
        answer = httpx.get(
            f"https://{server}/number/{number}",
            headers=_signed(read_private_key(key)),
            verify=ssl.create_default_context(cafile=str(authority)),
            timeout=SECONDS,
            trust_env=False,
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
        return ""  # Flower's own attempts to connect tell what is wrong
    if answer.status_code != httpx.codes.CONFLICT:
        return ""
    return f"is {number}, but by the server's list the key {key.name} {one_line(answer.text)[:200]}"


def read_private_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Read a client's private key as OpenSSH writes it, without a password.

    Raises:
        ValueError: The file holds no such key, or a key of a kind that Flower does not take.
        OSError: The file cannot be read.
    """
    try:
        key = load_ssh_private_key(file.read_bytes(), None)
    except (UnsupportedAlgorithm, TypeError) as error:  # TypeError: the key needs a password
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an ECDSA key")
    return key


def _signed(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the headers with which a client signs a request, as Flower's clients do (flwr 1.41)."""
    timestamp = datetime.datetime.now(datetime.UTC).isoformat()
    signature = key.sign(timestamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    return {
        KEY: header_of(key.public_key()),
        SIGNATURE: base64.b64encode(signature).decode("ascii"),
        TIMESTAMP: timestamp,
    }

"""The public keys of a deployment's clients, by which the gate tells clients from strangers."""

import base64
import binascii
import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from fedssl.app.deploy.roster import ROSTER, Roster
from fedssl.core.errors import InputError

KEY, SIGNATURE, TIMESTAMP = "flwr-public-key", "flwr-signature", "flwr-timestamp"
"""The headers by which Flower's clients sign their requests (flwr 1.41)."""

CLOCK_AHEAD, CLOCK_BEHIND = 5.0, 305.0
"""Flower accepts a request's time up to these many seconds ahead of the server's clock, or behind it (1.41)."""


class Admitted:
    """The registered keys, read from a folder of ``.pub`` files again whenever the folder changes.

    Args:
        folder: A folder with a file for each key, as OpenSSH writes them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = -1
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self._names: dict[str, str] = {}

    def has_signed(self, key: str, signature: str, timestamp: str) -> bool:
        """Return whether a registered key has signed a time that is now, within Flower's limits.

        Args:
            key: The public key as Flower's header has it: base64 of its PEM.
            signature: Base64 of the signature of the time.
            timestamp: The time in ISO 8601, with its zone.
        """
        if key not in self._keys:
            self._read()
        if key not in self._keys:
            return False
        try:
            signed_at = datetime.datetime.fromisoformat(timestamp)
            age = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
            if not -CLOCK_AHEAD < age < CLOCK_BEHIND:
                return False
            self._keys[key].verify(
                base64.b64decode(signature, validate=True),
                timestamp.encode("ascii"),
                ec.ECDSA(hashes.SHA256()),
            )
        except (InvalidSignature, ValueError, TypeError, binascii.Error):
            return False
        return True

    def falsehood(self, key: str, claim: int) -> str:
        """Say what is false if the client with a registered key says that it has a number; empty if nothing is.

        Args:
            key: The public key as in `has_signed`.
            claim: The number that the client says it has.
        """
        try:
            return Roster(self._folder / ROSTER).falsehood(self._names.get(key, ""), claim)
        except InputError:
            return ""  # the operator's commands tell that the roster cannot be read, and the census compares numbers

    def _read(self) -> None:
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return
        if changed == self._changed:
            return
        self._changed = changed
        self._keys, self._names = {}, {}
        for file in sorted(self._folder.glob("*.pub")):
            try:
                public = read_public_key(file)
            except (OSError, ValueError):
                continue
            self._keys[header_of(public)] = public
            self._names[header_of(public)] = file.stem


def read_public_key(file: Path) -> ec.EllipticCurvePublicKey:
    """Read a client's public key as OpenSSH writes it.

    Raises:
        ValueError: The file holds no public key, or a key of a kind that Flower does not take. Flower takes ECDSA on a
            NIST curve.
        OSError: The file cannot be read.
    """
    try:
        key = load_ssh_public_key(file.read_bytes())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the key is not an ECDSA key")
    return key


def header_of(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key in the form of Flower's header (flwr 1.41)."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode("ascii")

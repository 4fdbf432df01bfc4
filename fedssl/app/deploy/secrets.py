"""Make the certificates and keys of a deployment, by which clients recognize the server and the server its clients.

Only their owner can read private files. Nothing here is ever printed.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 825
"""A certificate is valid for this many days, the longest time that common clients accept for a server's."""

OWN_NAMES = ("localhost", "127.0.0.1", "::1", "superlink", "gate")
"""Names that the server has on its own host and in the containers' network."""


def write_certificates(folder: Path, names: Sequence[str]) -> None:
    """Write a certificate authority of this deployment's own and the server's certificate.

    ``ca.crt`` goes to every client; ``server.crt`` and ``server.key`` stay at the server. The authority's key is not
    kept, so nobody can make another server's certificate that clients would believe.

    Args:
        folder: Folder of the certificates; it is made if it does not exist.
        names: Host names and addresses under which clients reach the server, beside `OWN_NAMES`.
    """
    # Both certificates share one time of validity.
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    since = now - datetime.timedelta(days=1)  # for hosts whose clock is behind
    until = now + datetime.timedelta(days=VALID_DAYS)
    # The authority signs its own certificate, and may sign servers only (path length 0).
    authority_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    authority = _make_name("fedssl deployment authority")
    authority_certificate = (
        x509.CertificateBuilder()
        .subject_name(authority)
        .issuer_name(authority)
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA384())
    )
    # The authority signs the server's certificate, which names every name under which clients reach the server.
    server_certificate = (
        x509.CertificateBuilder()
        .subject_name(_make_name("fedssl superlink"))
        .issuer_name(authority)
        .public_key(server_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [_alternative_name(n) for n in dict.fromkeys([*OWN_NAMES, *names])]
            ),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    # Write both certificates and the server's key. The authority's key is forgotten.
    pem = serialization.Encoding.PEM
    _write_public(folder / "ca.crt", authority_certificate.public_bytes(pem))
    _write_public(folder / "server.crt", server_certificate.public_bytes(pem))
    write_private(
        folder / "server.key",
        server_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def days_left(certificate: Path) -> float:
    """Return for how many days a certificate is still valid; below zero once it has expired.

    Raises:
        ValueError: The file holds no certificate.
        OSError: The file cannot be read.
    """
    until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (until - datetime.datetime.now(datetime.UTC)) / datetime.timedelta(days=1)


def write_node_key(path: Path) -> None:
    """Write a client's private key (ECDSA P-384, in OpenSSH's form), and its public key beside it as PATH.pub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    write_private(path, key.private_bytes(encoding, form, serialization.NoEncryption()))
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write_public(path.with_name(f"{path.name}.pub"), public + b"\n")


def write_shared_secret(path: Path) -> None:
    """Write the secret by which the SuperLink recognizes the process that runs apps."""
    write_private(path, os.urandom(48).hex().encode())


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; at no moment does it have other rights."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _write_public(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
    path.chmod(0o644)


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _make_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_name(name: str) -> x509.GeneralName:
    if is_address(name):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

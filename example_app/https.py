"""The application over HTTPS on this machine, with a certificate made for it.

::

    python -m example_app.https --port 5000

Sessions are bound to devices over HTTPS only, and only with a certificate that the
browser believes: one that was merely clicked away does not count.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import os
import typing as t
from ipaddress import ip_address
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from . import create_app

HOST = "127.0.0.1"
LIFETIME = dt.timedelta(days=30)

#: What a Chromium without keys of a device, such as that of Linux, needs for it.
FEATURES = (
    "DeviceBoundSessions:RefreshQuota/false",
    "EnableBoundSessionCredentialsSoftwareKeysForManualTesting",
)


class Certificate(t.NamedTuple):
    """A certificate and its key, in files."""

    path: Path
    key_path: Path
    #: What tells a browser to believe it: the SHA-256 of its public key, in base64.
    pin: str

    @property
    def flags(self) -> list[str]:
        """The flags of a browser that believes it and binds sessions."""
        return [
            f"--enable-features={','.join(FEATURES)}",
            f"--ignore-certificate-errors-spki-list={self.pin}",
        ]


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate of this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    names: list[x509.GeneralName] = [x509.IPAddress(ip_address(HOST))]
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path, key_path = folder / "certificate.pem", folder / "certificate-key.pem"
    path.write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_path.unlink(missing_ok=True)
    descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(private)
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    pin = base64.b64encode(hashlib.sha256(public).digest()).decode("ascii")
    return Certificate(path, key_path, pin)


@click.command()
@click.option("--port", default=5000, show_default=True)
@click.option("--instance", help="An absolute path, for all that is kept.")
def main(port: int, instance: str | None) -> None:
    """Serve the application over HTTPS."""
    app = create_app(instance_path=instance)
    certificate = make_certificate(Path(app.instance_path))
    url = f"https://{HOST}:{port}/"
    # A profile of its own: flags are not for one that is running already.
    profile = Path(app.instance_path) / "chromium"
    flags = [*certificate.flags, f"--user-data-dir={profile}"]
    click.echo(f"Visit {url} with a browser that believes the certificate:\n")
    click.echo(" \\\n    ".join(["chromium", *map(repr, flags), url]) + "\n")
    paths = str(certificate.path), str(certificate.key_path)
    app.run(HOST, port, ssl_context=paths)


if __name__ == "__main__":
    main()

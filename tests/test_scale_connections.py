"""Redis by every driver, over every kind of connection, as a user with few rights.

The packaged Valkey has no TLS, so Debian's Redis stands for both here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import valkey
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flask_serversession import BackendUnavailableError
from flask_serversession.backends.redis import RedisBackend

from .load import Visitor
from .load import client_of
from .load import create_app
from .servers import RedisServer
from .servers import find_free_port

USER, PASSWORD = "shop", "s3cret/with:signs@"
QUOTED = "s3cret%2Fwith%3Asigns%40"
#: What docs/backends/redis.rst tells operators to grant; ``{}`` stands for the prefix.
RIGHTS = (
    "resetkeys ~{}* -@all +get +set +getrange +setrange +strlen +unlink +eval +evalsha"
    " +pexpire +pttl +zadd +zcard +zrange +zscore +zrem +zremrangebyscore"
    " +scan +info"
)


#: What the drivers need beside that for a Cluster.
CLUSTER_RIGHTS = "+cluster|slots +command"


def make_certificates(directory: Path) -> None:
    """Write an authority's certificate, and two of servers that it has signed."""
    now = dt.datetime.now(dt.timezone.utc)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def sign(
        name: x509.Name, key: ec.EllipticCurvePrivateKey, *names: x509.GeneralName
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not names, path_length=None), True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    authority_key.public_key()
                ),
                False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        return builder.sign(authority_key, hashes.SHA256())

    def write(name: str, content: bytes) -> None:
        (directory / name).write_bytes(content)

    pem = serialization.Encoding.PEM
    write("ca.pem", sign(authority, authority_key).public_bytes(pem))
    local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    for name, subject in {"local": local, "other": x509.DNSName("other.test")}.items():
        key = ec.generate_private_key(ec.SECP256R1())
        subject_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        write(f"{name}.pem", sign(subject_name, key, subject).public_bytes(pem))
        write(
            f"{name}-key.pem",
            key.private_bytes(
                pem,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


class Secure(t.NamedTuple):
    """A server, and how it is reached."""

    server: RedisServer
    tls_port: int
    socket: Path
    authority: Path

    def url(self, way: str) -> str:
        user = f"{USER}:{QUOTED}@"
        if way == "unix":
            return f"unix://{user}{self.socket}?db=0"
        if way == "tls":
            return (
                f"rediss://{user}127.0.0.1:{self.tls_port}/0"
                f"?ssl_ca_certs={self.authority}&ssl_check_hostname=true"
            )
        return f"redis://{user}{self.server.address}/0"


def tls_options(port: int, certificates: Path, name: str = "local") -> tuple[str, ...]:
    return (
        *("--tls-port", str(port)),
        *("--tls-cert-file", str(certificates / f"{name}.pem")),
        *("--tls-key-file", str(certificates / f"{name}-key.pem")),
        *("--tls-ca-cert-file", str(certificates / "ca.pem")),
        *("--tls-auth-clients", "no"),
    )


@pytest.fixture(scope="module")
def secure(
    run_server: t.Any, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secure]:
    tls_port = find_free_port()
    path = tmp_path_factory.mktemp("socket") / "redis.sock"
    options = tls_options(tls_port, certificates)
    with run_server(RedisServer, *options, "--unixsocket", str(path)) as server:
        with redis.Redis.from_url(server.url) as client:
            rights = RIGHTS.format("session:").split()
            client.execute_command(
                "ACL", "SETUSER", USER, "on", f">{PASSWORD}", *rights
            )
            # Nobody else gets in.
            client.execute_command("ACL", "SETUSER", "default", "off")
        yield Secure(server, tls_port, path, certificates / "ca.pem")


@pytest.mark.parametrize("way", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("driver", ["url", "redis-py", "valkey-py"])
def test_every_driver_over_every_kind_of_connection(
    secure: Secure, way: str, protocol: int, driver: str
) -> None:
    url = secure.url(way)
    with contextlib.ExitStack() as stack:
        config: dict[str, t.Any] = {"SESSION_BACKEND": "redis"}
        if driver == "url":
            sign = "&" if "?" in url else "?"
            config["SESSION_REDIS_URL"] = f"{url}{sign}protocol={protocol}"
        else:
            module: t.Any = redis.Redis if driver == "redis-py" else valkey.Valkey
            client = module.from_url(url, protocol=protocol)
            stack.callback(client.close)
            config["SESSION_REDIS"] = client
        app = create_app(config)
        stack.callback(app.extensions["serversession"].backend.close)
        use_everything(app)


def use_everything(app: t.Any) -> None:
    """Use every operation of the backend, and so every command."""
    server_session = app.extensions["extension"]
    ask = client_of(app)
    visitors = [Visitor(name) for name in ("one", "two")]
    for visitor in visitors:
        status, text, visitor.cookie = ask("POST", f"/start/{visitor.name}/ada", None)
        assert status == 200, text
        for path in ("/append/a", "/atomic/b"):
            assert ask("POST", path, visitor.cookie)[0] == 200
        assert '"log":["a","b"]' in ask("GET", "/read", visitor.cookie)[1]
    backend = app.extensions["serversession"].backend
    key = f"session:{visitors[0].handle}"
    record = backend.load(key)
    # So late that the index of its user has to be told.
    assert backend.touch(key, record.touched_at, record.expires_at + 10_000_000)
    assert backend.server_version().startswith("Redis ")
    with app.app_context():
        assert server_session.count() == 2
        handles = {visitor.handle for visitor in visitors}
        assert {info.handle for info in server_session.sessions()} == handles
        assert {info.handle for info in server_session.sessions_of("ada")} == handles
        assert server_session.revoke(visitors[0].handle)
        assert server_session.revoke_user("ada") == 1
        assert server_session.sessions_of("ada") == []
        assert server_session.prune() == 0
    # Nobody has these any more.
    assert '"owner":null' in ask("GET", "/read", visitors[1].cookie)[1]


def test_the_user_sees_no_other_keys(secure: Secure) -> None:
    backend = RedisBackend.from_url(secure.url("tls"), prefix="other:")
    with pytest.raises(
        BackendUnavailableError,
        match=r"does not permit 'load' to this user: .* Let its ACL",
    ):
        backend.load("other:key")
    backend.close()


@pytest.mark.parametrize("problem", ["unknown authority", "another host"])
def test_a_server_with_a_wrong_certificate_is_told_nothing(
    secure: Secure, certificates: Path, run_server: t.Any, problem: str
) -> None:
    with contextlib.ExitStack() as stack:
        if problem == "another host":
            port = find_free_port()
            options = tls_options(port, certificates, "other")
            stack.enter_context(run_server(RedisServer, *options))
            query = f"?ssl_ca_certs={secure.authority}"
        else:
            port, query = secure.tls_port, ""
        url = f"rediss://{USER}:{QUOTED}@127.0.0.1:{port}{query}"
        backend = RedisBackend.from_url(url)
        stack.callback(backend.close)
        with pytest.raises(BackendUnavailableError) as caught:
            backend.load("session:key")
        told, _, reason = str(caught.value).partition("'load': ")
        assert told == (
            f"The Redis backend at '127.0.0.1:{port}' has a certificate that is not"
            " trusted or not for this host, and was not asked for "
        )
        reasons = {"unknown authority": "certificate in", "another host": "mismatch"}
        assert reasons[problem] in reason
        # Who asks for it may do without.
        sign = "&" if query else "?"
        relaxed = RedisBackend.from_url(f"{url}{sign}ssl_cert_reqs=none")
        stack.callback(relaxed.close)
        if problem == "unknown authority":
            assert relaxed.load("session:key") is None


def test_a_cluster_over_tls(certificates: Path, run_server: t.Any) -> None:
    port = find_free_port()
    options = tls_options(port, certificates)
    options += ("--tls-cluster", "yes", "--cluster-enabled", "yes")
    with run_server(RedisServer, *options) as server:
        server._ask("CLUSTER ADDSLOTSRANGE 0 16383")
        while "cluster_state:ok" not in server._ask("CLUSTER INFO"):
            pass
        rights = f"{RIGHTS.format('session:')} {CLUSTER_RIGHTS}"
        server._ask(f"ACL SETUSER {USER} on >{PASSWORD} {rights}")
        server._ask("ACL SETUSER default off")
        url = (
            f"rediss+cluster://{USER}:{QUOTED}@127.0.0.1:{port}"
            f"?ssl_ca_certs={certificates}/ca.pem"
        )
        app = create_app({"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url})
        use_everything(app)
        app.extensions["serversession"].backend.close()


def test_sentinels_over_tls(
    certificates: Path, run_server: t.Any, tmp_path: Path
) -> None:
    ports = find_free_port(), find_free_port()
    options = tls_options(ports[0], certificates)
    with run_server(RedisServer, *options) as primary:
        config = tmp_path / "sentinel.conf"
        config.write_text(f"sentinel monitor mymaster 127.0.0.1 {ports[0]} 1\n")
        options = tls_options(ports[1], certificates)
        options += ("--tls-replication", "yes", "--sentinel")
        with run_server(Sentinel, config, *options):
            url = (
                f"rediss+sentinel://127.0.0.1:{ports[1]}/mymaster/0"
                f"?ssl_ca_certs={certificates}/ca.pem"
            )
            app = create_app({"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url})
            use_everything(app)
            app.extensions["serversession"].backend.close()
        assert primary.is_running


class Sentinel(RedisServer):
    """A Sentinel with a configuration of its own."""

    def __init__(self, config: Path, *args: str) -> None:
        super().__init__(*args, config=config.read_text())

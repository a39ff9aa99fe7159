"""Tokens and the certificate are replaced while the server runs, and never lost."""

import errno
import http.client
import io
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from deploy.cli.serve import find_certificate, find_tokens
from deploy.errors import ArgumentError
from deploy.server import background
from deploy.server.limits import Limits
from deploy.server.metrics import Metrics
from deploy.server.transport import credentials
from deploy.server.transport.credentials import Certificate, FromFiles, open_certificate
from deploy.server.transport.expiry import find_expiry
from tests.deploy.server.conftest import HOST, IMAGE, Running, head, read_all, running, wait_for
from tests.deploy.server.test_cli import TOKEN, ignore, options
from tests.deploy.server.test_drain import served
from tests.deploy.server.transport.certificates import write_certificate

OTHER = "y" * len(TOKEN)
DAY = 24 * 3600.0


class Reports(list[ArgumentError | None]):
    __call__ = list.append


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def serial(connection: ssl.SSLSocket) -> int:
    return int(connection.getpeercert()["serialNumber"], 16)


@contextmanager
def secured(
    bundle: Path, folder: Path, limits: Limits | None = None
) -> Iterator[tuple[Running, FromFiles[Certificate]]]:
    certificate, key, _ = write_certificate(folder)
    source = find_certificate(certificate, key, Reports())
    assert source
    with running(bundle, limits, tls=lambda: source.current.context) as server:
        yield server, source


def connect(port: int, folder: Path) -> ssl.SSLSocket:
    raw = socket.create_connection((HOST, port), timeout=30)
    return trusting(folder / "server.crt").wrap_socket(raw, server_hostname=HOST)


def embed(connection: socket.socket) -> int:
    connection.sendall(head(len(IMAGE)) + IMAGE)
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def status(server: Running, folder: Path) -> int:
    with connect(server.port, folder) as connection:
        return embed(connection)


# Tokens


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return file


def test_the_lines_of_the_file_are_valid_together_and_replaced_when_it_changes(token_file: Path) -> None:
    reports = Reports()
    tokens = find_tokens(options("b", "--token-file", token_file), {}, reports)
    assert tokens
    token_file.write_text(f"{TOKEN}\n\n  {OTHER} \r\n")
    tokens.refresh()
    assert tokens.current == (TOKEN.encode(), OTHER.encode())
    token_file.write_text(OTHER)
    tokens.refresh()
    tokens.refresh()
    assert tokens.current == (OTHER.encode(),)
    assert reports == [None, None]


def ruin(change: str, file: Path) -> None:
    {"empty": lambda: file.write_text("\n"), "gone": file.unlink, "weak": lambda: file.write_text("short")}[change]()


@pytest.mark.parametrize("change", ["empty", "gone", "weak"])
def test_a_file_without_tokens_never_opens_the_server(change: str, token_file: Path, bundle: Path) -> None:
    reports = Reports()
    tokens = find_tokens(options("b", "--token-file", token_file), {}, reports)
    assert tokens
    with running(bundle, tokens=lambda: tokens.current) as server:
        ruin(change, token_file)
        tokens.refresh()
        tokens.refresh()
        assert len(reports) == 1
        assert isinstance(reports[0], ArgumentError)
        assert server.post("/v1/embed", IMAGE).status == 401
        assert server.post("/v1/embed", IMAGE, Authorization="Bearer ").status == 401
        assert server.post("/v1/embed", IMAGE, Authorization=f"Bearer {TOKEN}").status == 200
        token_file.write_text(OTHER)
        tokens.refresh()
        assert server.post("/v1/embed", IMAGE, Authorization=f"Bearer {TOKEN}").status == 401
        assert server.post("/v1/embed", IMAGE, Authorization=f"Bearer {OTHER}").status == 200


def test_without_any_token_left_no_one_gets_in(bundle: Path) -> None:
    with running(bundle, tokens=tuple) as server:
        for header in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
            assert server.post("/v1/embed", IMAGE, **header).status == 401


@pytest.mark.seconds
def test_a_pipe_is_read_once_and_holds_up_nothing(token_file: Path, bundle: Path) -> None:
    with served(bundle, "--token-file", token_file) as (process, port, lines):
        with socket.create_connection((HOST, port)) as connection:
            assert "Connection: close" not in ask_live(connection)
            token_file.unlink()
            os.mkfifo(token_file)
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: "Connection: close" in ask_live(connection), "the reload")
        process.terminate()
        assert process.wait(30) == 0
    (kept,) = [line for line in lines if line["event"] == "tokens kept"]
    assert "not a regular file" in str(kept["error"])


def ask_live(connection: socket.socket) -> str:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
    return connection.recv(10_000).decode().replace("connection: ", "Connection: ")


# The certificate


def test_https_of_tls_1_2_and_newer(bundle: Path, tmp_path: Path) -> None:
    with secured(bundle, tmp_path) as (server, _):
        for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(tmp_path / "server.crt")
            context.maximum_version = newest
            connection = http.client.HTTPSConnection(HOST, server.port, timeout=30, context=context)
            connection.request("POST", "/v1/embed", IMAGE, {"Content-Type": "image/png"})
            assert connection.getresponse().status == 200
            connection.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        raw = socket.create_connection((HOST, server.port), timeout=30)
        with raw, pytest.raises(ssl.SSLError):
            old.wrap_socket(raw)


def test_a_renewed_certificate_is_taken_by_new_connections(bundle: Path, tmp_path: Path) -> None:
    with secured(bundle, tmp_path) as (server, source), connect(server.port, tmp_path) as before:
        old = serial(before)
        _, _, new = write_certificate(tmp_path)
        source.refresh()
        with connect(server.port, tmp_path) as after:
            assert (serial(before), serial(after)) == (old, new)
            assert [embed(before), embed(after)] == [200, 200]


def seconds_left(port: int, folder: Path) -> float:
    """What /metrics says until when the certificate is valid."""
    connection = http.client.HTTPSConnection(HOST, port, timeout=30, context=trusting(folder / "server.crt"))
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    (line,) = [line for line in lines if line.startswith("simclr_certificate_expires_seconds ")]
    return float(line.split()[1])


@pytest.mark.seconds
def test_the_time_until_the_certificate_expires_is_that_of_the_one_in_use(bundle: Path, tmp_path: Path) -> None:
    certificate, key, _ = write_certificate(tmp_path, days=2)
    with served(bundle, "--tls-cert", certificate, "--tls-key", key) as (process, port, lines):
        assert 1.9 < seconds_left(port, tmp_path) / DAY <= 2
        write_certificate(tmp_path / "new", days=90)
        key.write_text("half of a pair")  # the server keeps what it has, and so does the metric
        wait_for(lambda: any(line["event"] == "certificate kept" for line in lines), "the refusal")
        assert 1.9 < seconds_left(port, tmp_path) / DAY <= 2
        certificate.write_bytes((tmp_path / "new" / "server.crt").read_bytes())
        key.write_bytes((tmp_path / "new" / "server.key").read_bytes())
        wait_for(lambda: any(line["event"] == "certificate changed" for line in lines), "the renewal")
        assert 89.9 < seconds_left(port, tmp_path) / DAY <= 90
        process.terminate()
        assert process.wait(30) == 0


def test_plain_http_has_no_such_metric(shared: Running) -> None:
    assert "\nsimclr_certificate_expires_seconds " not in shared.ask("GET", "/metrics").body.decode()


@pytest.mark.parametrize("days", [[1], [-3], [10, 2, 30], [365 * 40]])  # from 2050 on, years have four digits
def test_a_chain_expires_with_its_first_certificate(days: list[float], tmp_path: Path) -> None:
    chain = b""
    for number, one in enumerate(days):
        certificate, _, _ = write_certificate(tmp_path / str(number), days=one)
        chain += b"subject=CN = test\n" + certificate.read_bytes()
    expected = min(one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(chain))
    assert find_expiry(chain) == expected
    assert abs(expected - time.time() - min(days) * DAY) < 60


def test_a_chain_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    certificate, key, _ = write_certificate(tmp_path)
    whole = certificate.read_bytes()
    for read in (b"", whole[:100], whole[:100] + b"\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ArgumentError, match="changed while it was read"):
            open_certificate(certificate, key, read)


def test_a_half_replaced_pair_is_not_taken_before_it_is_complete(tmp_path: Path) -> None:
    reports = Reports()
    certificate, key, _ = write_certificate(tmp_path)
    source = find_certificate(certificate, key, reports)
    assert source
    before, old_key = source.current, key.read_bytes()
    write_certificate(tmp_path)
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    source.refresh()
    source.refresh()
    assert source.current is before
    key.write_bytes(new_key)
    source.refresh()
    assert source.current is not before
    assert [type(report) for report in reports] == [ArgumentError, type(None)]


def missing(certificate: Path, key: Path) -> None:
    certificate.unlink()


def garbage(certificate: Path, key: Path) -> None:
    certificate.write_text("no certificate")


def swapped(certificate: Path, key: Path) -> None:
    key.write_bytes(certificate.read_bytes())


def of_another(certificate: Path, key: Path) -> None:
    kept = key.read_bytes()
    write_certificate(certificate.parent)
    key.write_bytes(kept)


def encrypted(certificate: Path, key: Path) -> None:
    write_certificate(certificate.parent, password=b"secret")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "No such file"),
        (garbage, "not a certificate chain"),
        (swapped, "not a certificate chain"),
        (of_another, "the key does not belong to the certificate"),
        (encrypted, "is encrypted; give it without a password"),
    ],
)
def test_a_wrong_pair_is_refused_in_one_sentence(
    spoil: Callable[[Path, Path], None], message: str, tmp_path: Path
) -> None:
    certificate, key, _ = write_certificate(tmp_path)
    spoil(certificate, key)
    with pytest.raises(ArgumentError, match=message) as refused:
        find_certificate(certificate, key, ignore)
    assert "\n" not in str(refused.value)


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    for given in ((tmp_path, None), (None, tmp_path)):
        with pytest.raises(ArgumentError, match="belong together"):
            find_certificate(*given, ignore)
    assert find_certificate(None, None, ignore) is None


def test_handshakes_that_never_end_hold_no_place(bundle: Path, tmp_path: Path) -> None:
    with secured(bundle, tmp_path, Limits(connections=4)) as (server, _), ExitStack() as stack:
        for number in range(20):
            stack.enter_context(server.connect(b"\x16\x03\x01" if number % 2 else b""))
        assert [status(server, tmp_path) for _ in range(5)] == [200] * 5


def test_a_handshake_has_a_time_limit(bundle: Path, tmp_path: Path) -> None:
    with secured(bundle, tmp_path, Limits(head_seconds=0.2)) as (server, _), server.connect(b"\x16\x03\x01") as stuck:
        assert read_all(stuck) == b""
        assert status(server, tmp_path) == 200


def test_plain_http_to_the_https_port_is_counted_and_not_logged(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with secured(bundle, tmp_path) as (server, _):
        for _ in range(3):
            with server.connect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as plain:
                assert not read_all(plain).startswith(b"HTTP")
        refused = 'simclr_connections_refused_total{reason="tls_handshake"} 3'
        wait_for(lambda: refused in server.service.metrics.text([]), "three refusals")
    assert caplog.text == ""
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["draining"]


@pytest.mark.seconds
def test_an_idle_https_client_does_not_delay_the_shutdown(bundle: Path, tmp_path: Path) -> None:
    certificate, key, _ = write_certificate(tmp_path)
    with ExitStack() as stack:
        process, port, _ = stack.enter_context(served(bundle, "--tls-cert", certificate, "--tls-key", key))
        idle = stack.enter_context(connect(port, tmp_path))
        assert embed(idle) == 200  # and never reads the end of the connection
        stuck = stack.enter_context(socket.create_connection((HOST, port)))
        stuck.sendall(b"\x16\x03\x01")
        process.terminate()
        assert process.wait(6) == 0  # of the 8 s that a drain may take


# SIGHUP


class Client:
    """Embeds over one connection after the other, as long as each of them lasts."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port, self.context = port, trusting(certificate)
        self.answers: list[int] = []
        self.closed, self.is_open = 0, False

    def run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            connection = http.client.HTTPSConnection(HOST, self.port, timeout=60, context=self.context)
            while not ended.is_set():
                headers = {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}"}
                connection.request("POST", "/v1/embed", IMAGE, headers)
                response = connection.getresponse()
                response.read()
                self.answers.append(response.status)
                self.is_open = response.getheader("Connection") != "close"
                if not self.is_open:
                    self.closed += 1
                    break
            connection.close()


@pytest.mark.seconds
def test_sighup_under_load_loses_no_request_and_renews_every_connection(bundle: Path, token_file: Path) -> None:
    folder = token_file.parent
    certificate, key, _ = write_certificate(folder)
    files = ("--tls-cert", certificate, "--tls-key", key, "--token-file", token_file)
    ended = threading.Event()
    with served(bundle, *files) as (process, port, lines), ThreadPoolExecutor(4) as pool:
        clients = [Client(port, certificate) for _ in range(4)]
        running_clients = [pool.submit(client.run, ended) for client in clients]
        try:
            for change in range(1, 4):
                wait_for(lambda: all(client.is_open for client in clients), "an answer on each connection")
                token_file.write_text(f"{TOKEN}\n{OTHER}{change}\n")
                process.send_signal(signal.SIGHUP)
                wait_for(lambda change=change: all(client.closed >= change for client in clients), "the last answers")
        finally:
            ended.set()
            for one in running_clients:
                one.result()
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    assert {status for client in clients for status in client.answers} == {200}
    assert [line["event"] for line in lines if line["event"] != "request"] == [
        *["tokens changed"] * 3,
        "draining",
        "ended",
    ]


def test_the_files_are_read_again_without_a_signal(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "POLL_SECONDS", 0.01)
    tokens = find_tokens(options("b", "--token-file", token_file), {}, ignore)
    assert tokens
    credentials.watch([tokens], Metrics())
    token_file.write_text(OTHER)
    wait_for(lambda: tokens.current == (OTHER.encode(),), "the new token")


def test_an_unforeseen_failure_is_reported_and_the_files_are_still_watched(
    token_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "POLL_SECONDS", 0.001)
    failures, metrics = iter([RecursionError("again")] * 3 + [MemoryError("other")]), Metrics()
    tokens = find_tokens(options("b", "--token-file", token_file), {}, ignore)
    assert tokens
    refresh = tokens.refresh

    def fail_first() -> None:
        for failure in failures:
            raise failure
        refresh()

    token_file.write_text(OTHER)
    monkeypatch.setattr(tokens, "refresh", fail_first)
    credentials.watch([tokens], metrics)
    wait_for(lambda: tokens.current == (OTHER.encode(),), "the new token")
    assert 'simclr_background_failures_total{thread="tokens"} 4' in metrics.text([])
    wait_for(lambda: 'simclr_watch_age_seconds{watch="tokens"} ' in metrics.text([]), "the time of the look")
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["again", "other"]


def test_a_huge_file_is_not_read(token_file: Path) -> None:
    reports = Reports()
    tokens = find_tokens(options("b", "--token-file", token_file), {}, reports)
    assert tokens
    os.truncate(token_file, 1 << 40)
    tokens.refresh()
    assert "over 1,000,000 bytes" in str(reports[0])
    with pytest.raises(ArgumentError, match="over 1,000,000 bytes"):
        find_tokens(options("b", "--token-file", token_file), {}, reports)


def test_an_expired_certificate_does_not_replace_a_valid_one(tmp_path: Path) -> None:
    reports = Reports()
    certificate, key, _ = write_certificate(tmp_path)
    source = find_certificate(certificate, key, reports)
    assert source
    before = source.current
    write_certificate(tmp_path, days=-2)
    source.refresh()
    assert source.current is before
    assert "expired on" in str(reports[0])
    assert find_certificate(certificate, key, reports)  # at the start nothing better is known


def test_a_log_that_cannot_be_written_costs_no_request(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        attempts = 0

        def write(self, _: str) -> int:
            self.attempts += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    assert shared.post("/v1/embed", IMAGE).status == 200
    wait_for(lambda: full.attempts == 1, "the line of the request")
    assert shared.post("/v1/embed", IMAGE).status == 200

"""No secret is left in a text, and nothing else is taken out of it."""

import random
import string
import time
from pathlib import Path

import pytest

from pipeline.redact import redact, redactor
from tests.processes.busy import stretched

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPx",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "aws_session_token": "FwoGZXIvYXdzEBYaD==",
    "SIMCLR_UI_PASSWORD": "opensesame",
    "SIMCLR_ALERT_SLACK": "https://hooks.slack.example/services/T0/B0/x7GkQ2",
    "GOOGLE_CREDENTIALS": '{"private_key": "line one\\nüber"}',
}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMCLR_WORKSPACE", str(tmp_path))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("value", SECRETS.values())
def test_values_of_variables_with_secret_names_are_redacted(value: str) -> None:
    assert redact(f"login with {value!s} failed") == "login with *** failed"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://AKIA:s3cr3t@bucket/a", "s3://***@bucket/a"),
        ("postgresql://dagster:p@ss@db:5432/x?sslmode=on", "postgresql://***@db:5432/x?sslmode=on"),
        ("'https://ghp_0123456789@git.example/a.git'", "'https://***@git.example/a.git'"),
        (
            "GET https://b.s3.example/k?X-Amz-Algorithm=A&X-Amz-Credential=AK%2F1&X-Amz-Signature=ab12&part=3",
            "GET https://b.s3.example/k?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***&part=3",
        ),
        ("https://x.blob.example/c?sv=2024&sig=a%2Bb%3D", "https://x.blob.example/c?sv=2024&sig=***"),
        ('{"url": "http://h/?access_token=t0"}', '{"url": "http://h/?access_token=***"}'),
        ("Authorization: Bearer eyJhbGciOi.eyJzdWIi.c2ln", "Authorization: Bearer ***"),
    ],
)
def test_secrets_in_urls_and_headers_are_redacted(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_secrets_in_json_and_in_separate_lines_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact("?prefix=wJalrXUtnFEMI%2FK7MDENG%2BbPx&x=1") == "?prefix=***&x=1"
    monkeypatch.setenv("MY_TOKEN", 'sec"ret\\d-ü-value')
    assert redact(r'{"token": "sec\"ret\\d-\u00fc-value"}') == '{"token": "***"}'
    monkeypatch.setenv("SIGNING_KEY", "-----BEGIN-----\nMIIEvQIBADANBgkqhkiG9w0\nend\n")
    assert redact("MIIEvQIBADANBgkqhkiG9w0") == "***"
    assert redact("in the end") == "in the end"
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql://dagster:hunter-two@db/x")
    assert redact("password hunter-two refused") == "password *** refused"


def test_values_of_the_workspace_settings_are_redacted(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config.local").write_text(
        "[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://bucket/dvc\n    verify = true\n"
        "    secret_access_key = Zq8/local+secret\n    connection_string = AccountKey=abc==\n"
        "    region = eu-central-1\n"
    )
    text = "storage s3://bucket/dvc true eu-central-1 Zq8/local+secret AccountKey=abc=="
    assert redact(text) == "storage s3://bucket/dvc true eu-central-1 *** ***"
    assert redactor(tmp_path / "other")(text) == text


def test_ordinary_words_short_values_and_paths_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "KEYMAP": "default",
        "MY_TOKEN": "abc",
        "SSH_KEY": "/home/me/.ssh/id",
        "KEY_COUNT": "1000000",
        "EMPTY_SECRET": "",
    }.items():
        monkeypatch.setenv(name, value)
    text = (
        "the default key abc of /home/me/.ssh/id: 1000000 images, s3://bucket/a@2x.png?page=2, me@example.com, Basic x"
    )
    assert redact(text) == text


@pytest.mark.seconds
def test_redacting_twice_equals_redacting_once() -> None:
    draw = random.Random(0)
    pieces = [
        *SECRETS.values(),
        "://",
        "@",
        "?token=",
        "&sig=",
        "***",
        " ",
        "\n",
        '"',
        "Bearer ",
        *string.ascii_letters,
    ]
    for _ in range(2000):
        once = redact("".join(draw.choices(pieces, k=12)))
        assert redact(once) == once
        assert not any(value in once for value in SECRETS.values())


def test_redaction_time_grows_linearly_with_the_line() -> None:
    hide = redactor()
    for piece in ("a", "a.-", "x://", "?", "?key", "key", "://a:", "Bearer ", "*"):
        text = "?" + piece * (100_000 // len(piece))
        began = time.perf_counter()
        hide(text)
        assert time.perf_counter() - began < stretched(1)

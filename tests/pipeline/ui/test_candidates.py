"""The pages about candidates that wait, behind the guard: what each role sees and may decide, and what is refused."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from pipeline import waiting
from pipeline.ui.access import Access
from pipeline.ui.candidates import DIGEST, Candidates
from pipeline.ui.guard import Guard
from pipeline.ui.login import Login
from pipeline.ui.sessions import Sessions
from pipeline.waiting import Candidate, Decision
from pipeline.workspace import Workspace
from tests.pipeline.ui.test_guard import FILE, OPERATOR, VIEWER, Answer, application, basic, send

HOST = {"origin": "http://127.0.0.1:3000"}
FORM = HOST | {"content-type": "application/x-www-form-urlencoded"}
GIVEN = {"verdict": "approve", "who": "Ada", "why": "looks good"}
CANDIDATE = Candidate(
    bundle="ab" * 32,
    pretrained="b" * 64,
    commit="c" * 40,
    champion=None,
    reasons=("drift in <b>0002</b>",),
    gates={"representation": "undecided: <script>alert(1)</script>"},
    requested="2026-11-30T03:20:00+00:00",
    expires="2126-12-14T03:20:00+00:00",
)
PAGE = f"/candidates/{CANDIDATE.name}"


def keep(workspace: Workspace, **changes: Any) -> None:
    waiting.keep(workspace.root / "registry", replace(CANDIDATE, **changes))


def guarded(workspace: Workspace, **passwords: str) -> Guard:
    access = Access(passwords, frozenset(), b"secret")  # type: ignore[arg-type]
    login = Login(access, Sessions(FILE, access.key), "images")
    applications = {"operator": application("operator"), "viewer": application("viewer")}
    return Guard(applications, access, login, Candidates(workspace.root))  # type: ignore[arg-type]


def decide(guard: Guard, headers: dict[str, str] = FORM, path: str = PAGE, **changes: str) -> Answer:
    return send(guard, "POST", path, headers, urlencode(GIVEN | changes).encode())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The command lines that are started; instead of them, a program that does nothing."""
    found: list[tuple[str, ...]] = []
    start = asyncio.create_subprocess_exec

    async def record(*command: str, **options: Any) -> asyncio.subprocess.Process:
        found.append(command)
        return await start(sys.executable, "-c", "", **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", record)
    return found


def test_a_page_has_the_reasons_a_form_and_what_was_kept_of_it(workspace: Workspace) -> None:
    keep(workspace)
    guard = guarded(workspace)
    shown = send(guard, path=PAGE)
    assert shown.status == 200
    assert "drift in &lt;b&gt;0002&lt;/b&gt;" in shown.text
    assert "&lt;script&gt;alert(1)" in shown.text  # the gates, where nothing else was kept
    assert '<button class="approve" name="verdict" value="approve">' in shown.text
    assert f'<a href="{PAGE}">{CANDIDATE.name}</a>' in send(guard, path="/candidates").text
    kept = waiting.candidate_page(workspace.root, CANDIDATE.name)
    kept.parent.mkdir(parents=True)
    kept.write_text("<h2>In numbers</h2>")
    shown = send(guard, path=PAGE)
    assert "<h2>In numbers</h2>" in shown.text
    assert "<script" not in shown.text
    keep(workspace, champion="v0.0.1")
    obstacle = f"<p>Candidate {CANDIDATE.name} was compared with v0.0.1, and nothing serves now; it cannot be approved,"
    assert obstacle in send(guard, path=PAGE).text
    assert send(guard, path="/candidates/000000000000").status == 404
    assert send(guard, path="/candidates/../../params.yaml").status == 404
    assert send(guard, path="/candidates/ABABABABABAB").status == 404


def test_nothing_but_our_style_and_pictures_within_the_page_is_loaded(workspace: Workspace) -> None:
    keep(workspace)
    sent: list[Any] = []

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "path": PAGE, "headers": []}
        await Candidates(workspace.root).serve(scope, {}, "viewer", None, collect)  # type: ignore[arg-type]

    async def collect(message: Any) -> None:
        sent.append(message)

    asyncio.run(ask())
    policy = dict(sent[0]["headers"])[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert DIGEST in policy
    assert "unsafe" not in policy


def test_a_decision_of_the_form_is_the_command_with_name_and_reason(
    workspace: Workspace, started: list[tuple[str, ...]]
) -> None:
    keep(workspace)
    guard = guarded(workspace)
    done = decide(guard, why=" --force\n<now> ")
    assert (done.status, done.headers["location"]) == (303, PAGE)
    (command,) = started
    root = str(workspace.root)
    assert command[1:6] == ("-P", "-m", "pipeline", "--workspace", root)
    assert command[6:] == ("release", "approve", CANDIDATE.name, "--why=--force <now>", "--who=Ada")
    decide(guard, verdict="reject")
    assert started[-1][7] == "reject"


@pytest.mark.parametrize(
    ("headers", "changes", "status", "said"),
    [
        ({"content-type": FORM["content-type"]}, {}, 403, "only the form of this page"),  # says not where it is from
        (FORM | {"origin": "http://evil.example"}, {}, 403, "comes from http://evil.example"),
        (FORM | {"origin": "null"}, {}, 403, "comes from null"),
        (FORM | {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8000"}, {}, 403, "comes from"),
        (FORM | {"host": "evil.example"}, {}, 403, "not a name of this server"),
        (HOST | {"content-type": "application/json"}, {}, 403, "only the form of this page"),
        (FORM, {"why": "  "}, 400, "give your name and a reason"),
        (FORM, {"who": "x" * 501}, 400, "give your name and a reason"),
        (FORM, {"why": "a\0b"}, 400, "give your name and a reason"),
        (FORM, {"verdict": "delete"}, 400, "the verdict is one of: approve, reject"),
    ],
)
def test_only_the_form_of_the_page_decides(
    workspace: Workspace,
    started: list[tuple[str, ...]],
    headers: dict[str, str],
    changes: dict[str, str],
    status: int,
    said: str,
) -> None:
    keep(workspace)
    done = decide(guarded(workspace), headers, **changes)
    assert (done.status, said in done.text) == (status, True), done.text
    assert started == []


def test_a_viewer_sees_it_without_buttons_and_decides_nothing(
    workspace: Workspace, started: list[tuple[str, ...]]
) -> None:
    keep(workspace)
    guard = guarded(workspace, operator=OPERATOR, viewer=VIEWER)
    assert send(guard, path=PAGE).status == 401
    shown = send(guard, path=PAGE, headers=basic(VIEWER))
    assert shown.status == 200
    assert "<form" not in shown.text
    assert "An operator decides" in shown.text
    assert decide(guard, FORM | basic(VIEWER)).status == 403
    assert decide(guard).status == 401
    assert started == []
    assert "<form" in send(guard, path=PAGE, headers=basic(OPERATOR)).text
    assert decide(guard, FORM | basic(OPERATOR)).status == 303


def test_what_cannot_be_decided_any_more_has_no_form(workspace: Workspace) -> None:
    guard = guarded(workspace)
    late = "2026-11-30T03:20:00+00:00"
    rejected = Decision("rejected", "Ada", "a <b>broken</b> lens", late)
    for changes, said in (
        ({"expires": late}, "expired at 2026-11-30 03:20"),
        ({"champion": "v0.0.2"}, "was compared with v0.0.2, and nothing serves now"),
        ({"decision": rejected}, "Rejected by ada at 2026-11-30 03:20: a &lt;b&gt;broken&lt;/b&gt; lens"),
    ):
        keep(workspace, **changes)
        shown = send(guard, path=PAGE)
        assert said.lower() in shown.text.lower()
        assert "<form" not in shown.text


@pytest.mark.seconds
def test_the_reason_of_a_refused_decision_is_shown(workspace: Workspace, tmp_path: Path) -> None:
    """The real command, in a workspace without the data."""
    keep(workspace)
    done = decide(guarded(workspace))
    assert done.status == 409
    assert '<p role="alert">' in done.text
    assert waiting.find(workspace.root / "registry", CANDIDATE.name).decision is None

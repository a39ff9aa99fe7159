"""The pages about candidates that wait for a person: ``/candidates`` lists them, ``/candidates/<name>`` shows one.

Plain HTML behind the guard, without a script. The operator has a form with two buttons; what it asks for is done by
``simclr release approve`` or ``reject`` in a separate process, as from the command line. A viewer only looks.
"""

import asyncio
import base64
import hashlib
import html
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

from deploy.errors import RegistryError
from deploy.registry import version
from pipeline import waiting
from pipeline.errors import PipelineError, ReleaseError
from pipeline.params import read
from pipeline.redact import redactor
from pipeline.ui.access import Role
from pipeline.ui.asgi import HTML, Receive, Refused, Scope, Send, answer, read_body
from pipeline.waiting import Candidate, candidate_page, clock
from pipeline.workspace import Workspace

PATH = re.compile(r"/candidates(?:/(?P<name>[0-9a-f]{12}))?/?")
FORM_TYPE = "application/x-www-form-urlencoded"
COMMANDS = {"approve": "Approve: let it serve", "reject": "Reject for good"}
MOST_CHARACTERS = 500  # of a name or a reason
STYLE = """:root { color-scheme: light dark; --ink: #1c2733; --soft: #586679; --line: #d9dfe7; --page: #fff;
--pale: #f3f5f8; --one: #2f6fc7; --bad: #b3362c; --good: #1f7a49 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --soft: #9aa8bb; --line: #34404f; --page: #151b23;
--pale: #202a36; --one: #6ea6f2; --bad: #ec7468; --good: #57c08a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 72rem;
margin: 1.5rem auto 4rem; padding: 0 1rem } a { color: var(--one) } h1, h2, h3 { line-height: 1.25 }
h2 { margin: 2rem 0 .5rem; padding-top: .75rem; border-top: 2px solid var(--line) } p, li { overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .8rem .3rem 0;
border-bottom: 1px solid var(--line); vertical-align: top } th { color: var(--soft); font-weight: 600 }
form { background: var(--pale); padding: 1rem; display: grid; gap: .6rem; max-width: 44rem } label { display: grid }
input, textarea, button { font: inherit; padding: .5rem } .row { display: flex; flex-wrap: wrap; gap: .8rem }
button { border: 2px solid; background: var(--page); cursor: pointer } .approve { color: var(--good) }
.reject, [role=alert] { color: var(--bad) } .tiles { display: grid; gap: 1rem;
grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) }
figure { margin: 0; min-width: 0; overflow-wrap: anywhere }
img { width: 96px; height: 96px; object-fit: contain; background: var(--pale) }
figcaption { font-size: 12px; line-height: 1.4 }"""
DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'sha256-{DIGEST}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} · {workspace}</title>
<link rel="icon" href="data:,"><style>{style}</style></head><body><main><h1>{title}</h1>
<p><a href="/candidates">All candidates</a> · <a href="/assets/released_encoder">The released encoder</a></p>
{body}</main></body></html>"""
FORM = """<form method="post" action="/candidates/{name}">
<label>Your name<input name="who" required maxlength="{most}" autocomplete="name"></label>
<label>Reason, which is recorded<textarea name="why" required maxlength="{most}" rows="2"></textarea></label>
<div class="row">{buttons}</div></form>"""


class Candidates:
    """The pages of the workspace at ``root``; one decision at a time is carried out."""

    def __init__(self, root: Path) -> None:
        self._workspace = Workspace(root)
        self._deciding = asyncio.Lock()

    async def serve(self, scope: Scope, headers: Mapping[str, str], role: Role, receive: Receive, send: Send) -> None:
        """Raises Refused: the sender may not do this, or there is no such candidate."""
        match = PATH.fullmatch(scope["path"])
        if match is None:
            raise Refused(404, f"{scope['path']}: no such page; /candidates has all candidates")
        name = match["name"]
        if scope["method"] == "POST":
            if name is None:
                raise Refused(405, "decide on the page of a candidate", {"allow": "GET, HEAD"})
            fields = await _read_form(headers, role, receive)
            problem = await self._decide(name, fields)
            if not problem:
                await answer(scope, send, 303, "", {"location": f"/candidates/{name}"})
                return
            await self._show(scope, send, name, role, problem)
            return
        await self._show(scope, send, name, role)

    async def _decide(self, name: str, fields: Mapping[str, str]) -> str:
        """What went wrong, empty if nothing did."""
        verb = fields["verdict"]
        command = ["release", verb, name, f"--why={fields['why']}", f"--who={fields['who']}"]
        async with self._deciding:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "pipeline", "--workspace", str(self._workspace.root), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await process.communicate()
        if process.returncode == 0:
            return ""
        lines = said.decode("utf-8", "replace").strip().splitlines() or [f"exit code {process.returncode}"]
        return lines[-1].removeprefix("error: ")

    async def _show(self, scope: Scope, send: Send, name: str | None, role: Role, problem: str = "") -> None:
        root = self._workspace.root
        try:
            registry = root / read(self._workspace).release.registry
            if name is None:
                title, body = "Candidates", _list(registry)
            else:
                title, body = f"Candidate {name}", _describe(root, registry, waiting.find(registry, name), role)
        except ReleaseError as error:
            raise Refused(404, str(error)) from None
        except PipelineError as error:
            raise Refused(500, str(error)) from None
        alert = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
        page = PAGE.format(title=title, workspace=html.escape(root.name), style=STYLE, body=alert + body)
        status = 409 if problem else 200
        await answer(scope, send, status, redactor(root)(page), HTML | {"content-security-policy": POLICY})


async def _read_form(headers: Mapping[str, str], role: Role, receive: Receive) -> dict[str, str]:
    """The fields of the form. The guard has compared the origin, which a browser sends with each form.

    Raises:
        Refused: it is not from the page, or not from an operator, or something is missing.
    """
    if role != "operator":
        raise Refused(403, "a viewer decides nothing; log in with the operator's password")
    if "origin" not in headers or headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise Refused(403, "only the form of this page is accepted; a program runs `simclr release approve`")
    given = parse_qs((await read_body(receive)).decode("utf-8", "replace"))
    fields = {name: " ".join(given.get(name, [""])[0].split()) for name in ("verdict", "who", "why")}
    if fields["verdict"] not in COMMANDS:
        raise Refused(400, f"the verdict is one of: {', '.join(COMMANDS)}")
    if any(not 0 < len(fields[name]) <= MOST_CHARACTERS or "\0" in fields[name] for name in ("who", "why")):
        raise Refused(400, f"give your name and a reason, of up to {MOST_CHARACTERS} characters each")
    return fields


def _list(registry: Path) -> str:
    rows = [
        (one, _state(registry, one))
        for one in (*reversed(waiting.waiting(registry)), *reversed(waiting.decided(registry)))
    ]
    cells = "".join(
        f'<tr><td><a href="/candidates/{one.name}">{one.name}</a></td><td>{clock(one.requested)}</td>'
        f"<td>{html.escape(state)}</td></tr>"
        for one, state in rows
    )
    head = "<tr><th>candidate</th><th>since (UTC)</th><th>state</th></tr>"
    return f"<table>{head}{cells}</table>" if rows else "<p>No candidate has waited for a person yet.</p>"


def _describe(root: Path, registry: Path, one: Candidate, role: Role) -> str:
    can_be_decided = one.decision is None and one.obstacle(_serving(registry)) is None
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in one.reasons)
    head = f"<p>{html.escape(_state(registry, one))}</p><p>A person is asked because:</p><ul>{reasons}</ul>"
    form = ""
    if can_be_decided and role == "operator":
        buttons = "".join(
            f'<button class="{verb}" name="verdict" value="{verb}">{label}</button>' for verb, label in COMMANDS.items()
        )
        form = FORM.format(name=one.name, most=MOST_CHARACTERS, buttons=buttons)
        form += "<p>To approve takes some minutes: a fresh clone is verified once more.</p>"
    elif can_be_decided:
        form = "<p>An operator decides; you are logged in as a viewer.</p>"
    try:
        shown = candidate_page(root, one.name).read_text(encoding="utf-8")
    except OSError:
        said = "".join(f"<li>{html.escape(name)}: {html.escape(text)}</li>" for name, text in one.gates.items())
        shown = f"<h2>What the gates say</h2><ul>{said}</ul><p>Numbers and pictures are not kept any more.</p>"
    return head + form + shown


def _state(registry: Path, one: Candidate) -> str:
    serving = _serving(registry)
    if one.decision:
        return f"{_sentence(str(one.decision))} {serving or 'Nothing'} serves."
    if obstacle := one.obstacle(serving):
        return _sentence(obstacle)
    return (
        f"Waits since {clock(one.requested)}, until {clock(one.expires)} UTC; compared with "
        f"{one.champion or 'no champion'}, which serves meanwhile."
    )


def _sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:]}."


def _serving(registry: Path) -> str | None:
    try:
        return version(registry)
    except RegistryError:
        return None

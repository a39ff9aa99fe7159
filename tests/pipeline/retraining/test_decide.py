"""Every rule of the decision, and what holds for all inboxes."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.retraining.decide import Inbox, LastRun, Policy, Run, Skip, decide

NOW = datetime(2026, 11, 29, 3, tzinfo=UTC)
POLICY = Policy(min_new_images=1000, min_new_images_after_drift=200, quiet_minutes=10)
SCHEDULE = replace(POLICY, min_new_images=1, quiet_minutes=0)
CHAMPION = "v0.0.3"
DIGEST = "0123456789abcdef"
OTHER = "fedcba9876543210"


def inbox(new: int = 0, minutes: float | None = 60, **fields: object) -> Inbox:
    changed = None if minutes is None else NOW - timedelta(minutes=minutes)
    return Inbox(**{"digest": DIGEST, "new_files": new, "last_change": changed} | fields)


def last(status: str, digest: str | None = DIGEST, failed_at: str = "") -> LastRun:
    return LastRun("1a2b3c4d-0000", status, digest, failed_at)


BUSY = replace(last("failed"), busy=True)


def test_a_run_that_did_not_get_the_workspace_is_started_again_under_another_key() -> None:
    first, again = Run(DIGEST, "1 new image"), Run(DIGEST, "1 new image", after="1a2b3c4d")
    assert (first.run_key, again.run_key) == (DIGEST, f"{DIGEST}-1a2b3c4d")


@pytest.mark.parametrize(
    ("found", "last_run", "champion", "policy", "expected"),
    [
        (inbox(), None, None, POLICY, Skip("nothing new")),
        (inbox(), None, CHAMPION, POLICY, Skip("nothing new since v0.0.3")),
        (inbox(unsettled=1), None, None, POLICY, Skip("nothing new; 1 file is still being written")),
        (inbox(unsettled=3), None, None, POLICY, Skip("nothing new; 3 files are still being written")),
        (inbox(42), None, None, POLICY, Skip("42 new images, the sensor waits for 1,000")),
        (inbox(1), None, CHAMPION, POLICY, Skip("1 new image since v0.0.3, the sensor waits for 1,000")),
        (inbox(999), None, None, POLICY, Skip("999 new images, the sensor waits for 1,000")),
        (inbox(1000), None, None, POLICY, Run(DIGEST, "1,000 new images")),
        (inbox(1000), None, CHAMPION, POLICY, Run(DIGEST, "1,000 new images since v0.0.3")),
        (inbox(600, untrained=400), None, None, POLICY, Run(DIGEST, "1,000 new images")),
        (inbox(0, untrained=1500), None, None, POLICY, Run(DIGEST, "1,500 new images")),
        (inbox(199, drift=True), None, None, POLICY, Skip("199 new images, the sensor waits for 200 after drift")),
        (inbox(200, drift=True), None, None, POLICY, Run(DIGEST, "200 new images")),
        (inbox(1, drift=True), None, None, SCHEDULE, Run(DIGEST, "1 new image")),
        (
            inbox(1000, minutes=2),
            None,
            None,
            POLICY,
            Skip("the last file arrived 2 minutes ago; waiting for 10 quiet minutes"),
        ),
        (inbox(1000, minutes=1), None, None, replace(POLICY, quiet_minutes=0.5), Run(DIGEST, "1,000 new images")),
        (
            inbox(1000, minutes=0),
            None,
            None,
            replace(POLICY, quiet_minutes=1),
            Skip("the last file arrived a moment ago; waiting for 1 quiet minute"),
        ),
        (inbox(1000, minutes=10), None, None, POLICY, Run(DIGEST, "1,000 new images")),
        (inbox(1000, minutes=None), None, None, POLICY, Run(DIGEST, "1,000 new images")),
        (inbox(1, minutes=0), None, None, SCHEDULE, Run(DIGEST, "1 new image")),
        (inbox(relabeled=True), None, None, POLICY, Skip("new labels, the sensor waits for 1,000")),
        (inbox(relabeled=True), None, CHAMPION, SCHEDULE, Run(DIGEST, "new labels since v0.0.3")),
        (inbox(2, relabeled=True), None, None, SCHEDULE, Run(DIGEST, "2 new images and new labels")),
        (inbox(5000), last("in_progress"), None, POLICY, Skip("a run with these images is in progress (1a2b3c4d)")),
        (inbox(5000), last("in_progress", OTHER), None, POLICY, Skip("a run is in progress (1a2b3c4d)")),
        (inbox(), last("in_progress", None), None, POLICY, Skip("a run is in progress (1a2b3c4d)")),
        (inbox(5000), last("succeeded"), CHAMPION, POLICY, Skip("nothing new since v0.0.3")),
        (inbox(5000), last("succeeded", OTHER), None, POLICY, Run(DIGEST, "5,000 new images")),
        (inbox(5000), BUSY, None, POLICY, Run(DIGEST, "5,000 new images", after="1a2b3c4d")),
        (inbox(42), BUSY, None, POLICY, Skip("42 new images, the sensor waits for 1,000")),
        (
            inbox(5000),
            last("failed", failed_at="gate data_contract"),
            CHAMPION,
            SCHEDULE,
            Skip(
                "the last run with these images failed at gate data_contract (1a2b3c4d); "
                "fix the cause and start `retrain` in the UI, or add images"
            ),
        ),
        (
            inbox(5000),
            last("canceled"),
            None,
            POLICY,
            Skip("the last run with these images was canceled (1a2b3c4d); start `retrain` in the UI, or add images"),
        ),
        (inbox(5000), last("failed", OTHER), None, POLICY, Run(DIGEST, "5,000 new images")),
    ],
)
def test_each_rule_decides_as_documented(
    found: Inbox, last_run: LastRun | None, champion: str | None, policy: Policy, expected: Run | Skip
) -> None:
    assert decide(found, last_run, champion, NOW, policy) == expected


def situations() -> list[tuple[Inbox, LastRun | None, str | None, Policy]]:
    """Two thousand of them, drawn once and always the same."""
    choose = random.Random(0)
    found = []
    for _ in range(2000):
        images = inbox(
            choose.choice([0, 1, 199, 200, 999, 1000, 5000]),
            choose.choice([None, 0, 5, 10, 60]),
            untrained=choose.choice([0, 1, 800]),
            unsettled=choose.choice([0, 2]),
            relabeled=choose.random() < 0.3,
            drift=choose.random() < 0.3,
        )
        status = choose.choice(["in_progress", "succeeded", "failed", "canceled"])
        run = last(status, choose.choice([DIGEST, OTHER, None])) if choose.random() < 0.7 else None
        policy = choose.choice([POLICY, SCHEDULE, replace(POLICY, min_new_images_after_drift=5000)])
        found.append((images, run, choose.choice([None, CHAMPION]), policy))
    return found


def test_the_random_situations_produce_both_answers_often() -> None:
    answers = [type(decide(images, run, champion, NOW, policy)) for images, run, champion, policy in situations()]
    assert min(answers.count(Run), answers.count(Skip)) > 400


def test_a_run_never_repeats_images_or_overlaps_another_run() -> None:
    for images, run, champion, policy in situations():
        if run is not None and (run.digest == images.digest or run.status == "in_progress"):
            assert isinstance(decide(images, run, champion, NOW, policy), Skip)


def test_the_key_of_a_run_is_the_digest_of_its_images() -> None:
    for images, run, champion, policy in situations():
        answer = decide(images, run, champion, NOW, policy)
        assert not isinstance(answer, Run) or answer.run_key == images.digest


def test_more_images_lower_thresholds_and_more_time_never_turn_a_run_into_a_skip() -> None:
    for images, run, champion, policy in situations():
        if isinstance(decide(images, run, champion, NOW, policy), Skip):
            continue
        more = replace(images, new_files=images.new_files + 1)
        lower = replace(policy, min_new_images=max(1, policy.min_new_images // 2))
        assert isinstance(decide(more, run, champion, NOW, policy), Run)
        assert isinstance(decide(images, run, champion, NOW, lower), Run)
        assert isinstance(decide(images, run, champion, NOW + timedelta(hours=1), policy), Run)


def test_without_anything_new_it_never_runs() -> None:
    for images, run, champion, policy in situations():
        nothing = replace(images, new_files=0, untrained=0, relabeled=False)
        assert isinstance(decide(nothing, run, champion, NOW, policy), Skip)


def test_every_reason_is_one_line_without_a_dangling_word() -> None:
    for images, run, champion, policy in situations():
        reason = decide(images, run, champion, NOW, policy).reason
        assert reason == " ".join(reason.split())
        assert reason
        assert "None" not in reason

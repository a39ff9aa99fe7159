"""A schedule is judged as Dagster would, without it."""

import dagster as dg
import pytest

from pipeline.cron import is_cron

ALLOWED = """
0 3 * * 0; 30 4 * * 1-5; */15 2-4 1,15 jan *; 0 0 L * *; 0 0 * * L5; 0 0 * * 5#2; 0 0 * * fri#2; 0 0 * * fri-mon;
0 22-2 * * *; 0 0 ? * ?; 0 0 * * 7; 0 0 1,L * *; @daily; @DAILY; @midnight; 5/10 * * * *; 0 0 1-5/2 * *;
0 0 * JAN,mar *; 0 0 30,31 2 *; 0  3 * * 0; *,5 * * * *; 0 0 * * 0,7; 0 0 31 2,4 *; @yearly; @annually; @hourly
"""
REFUSED = """
0 3 * *; 0 3 * * 0 5; 60 * * * *; -5 * * * *; 0 0 0 * *; 0 0 * 13 *; 0 0 * * 8; 0 0 30 2 *; 0 0 31 feb *; */0 * * * *;
? 0 * * *; 0 0 15W * *; 0 0 * * 5L; h h * * *; every sunday; @reboot; @every 5m; 3; 0 0 * sun *; 0 0 * * jan;
1, * * * *; sunday
"""


def dagster_takes(expression: str) -> bool:
    try:
        dg.ScheduleDefinition(name="scheduled", job_name="retrain", cron_schedule=expression)
    except dg.DagsterInvalidDefinitionError:
        return False
    return True


@pytest.mark.parametrize("text", [ALLOWED, REFUSED])
def test_it_is_what_dagster_takes(text: str) -> None:
    expressions = [one.strip() for one in text.split(";")] + ([""] if text is REFUSED else [])
    wrong = [one for one in expressions if not is_cron(one) == dagster_takes(one) == (text is ALLOWED)]
    assert wrong == []

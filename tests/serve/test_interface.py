"""The interface is as /openapi.json says, whatever is sent: no answer of 500 or above."""

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from running import painted_server
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Arbitrary bytes fit the schema of a picture and are none.
EXCLUDED = [positive_data_acceptance]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = {"bytes": 100_000, "body_seconds": 2.0}
    with painted_server(tmp_path_factory.mktemp("server"), limits=limits) as running:
        yield running.wait_until_healthy()


def fuzz(server, *, examples):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {each.path for each in operations} >= {"/", "/ping", "/invocations", "/metadata"}
    seen = set()

    def check(case):
        answer = case.call_and_validate(session=session, excluded_checks=EXCLUDED, timeout=20)
        seen.add((case.path, answer.status_code))

    with requests.Session() as session:
        session.trust_env = False
        for operation in operations:
            for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:
                cases = operation.as_strategy(mode)
                settings(
                    max_examples=examples if operation.body else 1,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )(given(cases)(check))()
    return seen


def test_every_answer_is_a_documented_one(server):
    seen = fuzz(server, examples=30)
    assert {("/invocations", 200), ("/invocations", 400), ("/ping", 200)} <= seen


@pytest.mark.long
def test_every_answer_is_a_documented_one_at_length(server):
    fuzz(server, examples=3000)

"""Requests made from the server's own description (schemathesis): every answer is one that the description promises.

DIGSEG_TEST_EXAMPLES sets how many requests are made of each kind, 12 unless it says otherwise.
"""

from __future__ import annotations

import os

import pytest
from serving_cases import client_of
from serving_fixtures import *  # noqa: F403

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
EXAMPLES = int(os.environ.get("DIGSEG_TEST_EXAMPLES", "12"))
ASKED = ("POST /v1/encode", "POST /v1/segment", "GET /v1/encodings/{identifier}/picture", "DELETE /v1/encodings/{identifier}",
         "GET /v1/models", "GET /healthz", "GET /readyz", "GET /metrics")  # fmt: skip


@pytest.fixture(scope="module")
def described(engine):
    with client_of({"tiny": engine}, hosts=None) as client:
        yield schemathesis.openapi.from_asgi("/openapi.json", client.guard)


@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_those_described(described, asked):
    method, path = asked.split()
    from schemathesis.specs.openapi.checks import positive_data_acceptance as guessed  # no made-up bytes are a picture

    operation = described[path][method]

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    def check(case):
        answer = case.call_and_validate(excluded_checks=[guessed])
        assert answer.status_code < 500

    check()


def test_every_path_is_asked(described):
    assert {operation.ok().label for operation in described.get_all_operations()} == set(ASKED)

"""Threads, memory and abuse: small counts here, the full ones marked slow and under sanitizers in kernels/tests/sanitize.sh."""

import pytest
from native_fixtures import *  # noqa: F403
from native_fixtures import slow
from programs import run_program


def stress(installed, environment, *arguments):
    done = run_program([installed / "programs" / "stress", *arguments], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_threads_agree(installed, environment, native_bundle):
    assert "4 threads x 10 runs: 0 differ" in stress(installed, environment, "threads", native_bundle, 10, 4)


def test_damaged_caches_change_nothing(installed, environment, native_bundle):
    assert "8 starts over damaged caches: the same masks" in stress(installed, environment, "kept", native_bundle, 8)


def test_turned_bits_are_refused(installed, environment, native_bundle):
    assert "40 turned bits: " in stress(installed, environment, "flips", native_bundle, 40, 1)


def test_hostile_calls_are_refused(installed, environment, native_bundle):
    assert "refused with a status and a text" in stress(installed, environment, "hostile", native_bundle, 1000, 1)


@slow
@pytest.mark.slow
def test_threads_agree_at_length(installed, environment, native_bundle):
    assert "4 threads x 1000 runs: 0 differ" in stress(installed, environment, "threads", native_bundle, 1000, 4)


@slow
@pytest.mark.slow
def test_create_and_destroy_do_not_grow(installed, environment, native_bundle):
    stress(installed, environment, "create", native_bundle, 500)


@slow
@pytest.mark.slow
def test_a_thousand_turned_bits_are_refused(installed, environment, native_bundle):
    assert "1000 turned bits: " in stress(installed, environment, "flips", native_bundle, 1000, 1)


@slow
@pytest.mark.slow
def test_ten_thousand_hostile_calls(installed, environment, native_bundle):
    stress(installed, environment, "hostile", native_bundle, 10_000, 2)

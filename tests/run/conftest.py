"""The record of a small run, as the report's tests have it."""

from tests.report.conftest import record  # noqa: F401

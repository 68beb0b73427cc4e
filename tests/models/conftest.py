"""Asserts of the contract that models' tests inherit explain themselves."""

import pytest

pytest.register_assert_rewrite("tests.models.contract")

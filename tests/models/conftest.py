"""Register the contract of models, so pytest explains its failed asserts."""

import pytest

pytest.register_assert_rewrite("tests.models.contract")

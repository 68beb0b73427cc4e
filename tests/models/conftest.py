"""Register the contract of models, so that pytest explains its failed assertions."""

import pytest

pytest.register_assert_rewrite("tests.models.contract")

"""What MLflow's scoring server leaves open: requests that it cannot read, and memory kept by each.

It expects wrong JSON and not JSON that is too deep, or numbers of thousands of digits: those, and
tables of odd shapes, ended in a bare status 500.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import sys
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

logger = logging.getLogger(__name__)

# Of glibc's mallopt, and how many heaps threads share.
_M_ARENA_MAX, _NUM_ARENAS = -8, 2


def harden_server() -> None:
    """Have the scoring server of this process, if there is one, bear any request.

    It answers 400 where it cannot read one. It has no place where a model could be asked first, so
    its function is replaced by one around it. Its threads share two heaps: with one for each, every
    thread keeps what the largest request that it met left behind.
    """
    server: Any = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is None or hasattr(server.invocations, "__wrapped__"):
        return
    # Other C libraries have no such option, or no such function; Windows none without a name.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _NUM_ARENAS)
    answer = server.invocations

    @functools.wraps(answer)
    def invocations(*args: Any, **kwargs: Any) -> Any:
        try:
            return answer(*args, **kwargs)
        except MlflowException:
            raise
        except Exception as error:
            logger.warning("A request could not be read: %s", type(error).__name__)
            raise MlflowException(
                f"The request cannot be read ({_explain(error)}). Expected JSON such as "
                '{"dataframe_records": [{"history": ["242", "51"]}], "params": {"top_k": 5}}.',
                BAD_REQUEST,
            ) from None

    server.invocations = invocations


def _explain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{type(error).__name__}: {error}"[:200]

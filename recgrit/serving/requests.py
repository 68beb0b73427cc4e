"""A wrapper of MLflow's scoring server that answers unreadable requests and bounds its memory.

The server handles invalid JSON. It does not handle JSON that is nested too deeply, numbers of
thousands of digits, or tables of odd shapes: these end in a bare status 500. Each of its threads
also keeps memory of the largest request that it handled.
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

# Option of glibc's mallopt for the number of heaps, and the number that all threads share.
_M_ARENA_MAX, _NUM_ARENAS = -8, 2


def harden_server() -> None:
    """Make the scoring server of this process, if there is one, answer 400 to unreadable requests.

    MLflow has no hook before a request is parsed, so the server's function is replaced by a
    wrapper. The server's threads are also limited to two shared heaps of memory. With a heap each,
    every thread would keep the memory of the largest request that it handled.
    """
    server: Any = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is None or hasattr(server.invocations, "__wrapped__"):
        return
    # Other C libraries lack the option or the function, and Windows has no library without a name.
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

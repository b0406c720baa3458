"""The other end of `experiments.processes.Process`: commands in, answers out, a JSON object a line.

Needs nothing but Python: `experiments.reference_torch` runs where there is no lpjax.
"""

import json
import os
import sys
from typing import Any


def serve(worker: Any) -> None:
    """Answer {"do": METHOD, ..arguments} by what that method of the worker returns, or {"error": ..}, until stdin ends.

    What is printed meanwhile goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("do")
        try:
            answer = getattr(worker, command)(**request)
        except Exception as error:  # the other end says which request it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)

"""Wrong files and the message for each: one table for the API server and for the models, which must agree."""

import pytest

from tests.api.data_cases import DATA_CASES
from tests.api.deployment_cases import DEPLOYMENT_CASES
from tests.api.method_cases import METHOD_CASES
from tests.api.pod_cases import POD_CASES
from tests.api.run_cases import RUN_CASES

CASES = [*METHOD_CASES, *DATA_CASES, *RUN_CASES, *POD_CASES, *DEPLOYMENT_CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])

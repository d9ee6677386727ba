"""A model whose layers, and their adapters, lie on two devices: measured as if it lay on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tolerances import CENTRAL_LAMBDA_P, RANKS32

# A slow processor takes minutes over so much Python.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def found():
    script = Path(__file__).parents[1] / "helpers" / "other_device.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_second_device_is_one_an_operation_on_both_fails(found):
    assert "cpu and other" in found["mixed"]


def test_all_that_is_measured_is_the_same_on_two_devices(found):
    one, two = found["one"], found["two"]
    assert one.keys() == two.keys() and len(one) > 20, "each of two layers' modules by itself too"
    for name, value in one.items():
        # A difference of two gradients has more of their rounding, which is another one on each processor.
        tolerance = CENTRAL_LAMBDA_P if "central" in name else RANKS32
        assert two[name] == pytest.approx(value, rel=tolerance), name

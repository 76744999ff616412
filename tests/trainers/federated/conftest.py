"""Tests of federations; what they share is in `federation.py`."""

import os
import sys
from pathlib import Path

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
pytest.importorskip("flwr")
sys.path.insert(0, str(Path(__file__).parent))

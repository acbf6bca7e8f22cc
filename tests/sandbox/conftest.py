"""Tests with hostile programs aren't collected unless they are asked for."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("SIMKO_HOSTILE") == "1" else ["test_hostile.py"]

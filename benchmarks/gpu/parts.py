"""All parts, by name."""

from __future__ import annotations

from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.part import Part
from benchmarks.gpu.speed import speeds

PARTS: dict[str, Part] = CHECKS | speeds()

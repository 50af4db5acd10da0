"""Makes the helper modules of the rooms below importable."""

from __future__ import annotations

import sys
from pathlib import Path

for _room in ("quantizers", "integer", "experiments"):
    _folder = str(Path(__file__).resolve().parents[1] / _room)
    if _folder not in sys.path:
        sys.path.append(_folder)

"""``python -m monai_xtiny``."""

from __future__ import annotations

from monai_xtiny.cli.commands import main

if __name__ == "__main__":
    main()

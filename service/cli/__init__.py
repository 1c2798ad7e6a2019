"""The ``titok`` command."""

"""What many runs add up to: one HTML page, a table for the terminal, a picture for a README."""

from .page import write_report
from .picture import matrix_picture
from .table import print_table

__all__ = ["matrix_picture", "print_table", "write_report"]

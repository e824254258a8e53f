"""`python -m tachikoma` is the command `tachikoma`."""

from tachikoma.cli import program

program()

"""`python -m ohlol`, and what `torchrun -m ohlol` starts."""

from ohlol.cli import main

main(prog_name="ohlol")

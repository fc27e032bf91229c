"""Speed, measured on real protocols and stated as ratios within one run."""

from keeper.lab.bench.reaction import reaction
from keeper.lab.bench.report import render

__all__ = ["reaction", "render"]

"""Speed, measured on real protocols and stated as ratios within one run."""

from keeper.lab.bench.pause import pause
from keeper.lab.bench.plan import plan
from keeper.lab.bench.reaction import reaction
from keeper.lab.bench.report import render, render_pause, render_plan

__all__ = ["pause", "plan", "reaction", "render", "render_pause", "render_plan"]

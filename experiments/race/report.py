"""The race as an experiment: how it runs, and what is shown of it."""

from typing import TYPE_CHECKING

from experiments.contract import Experiment
from experiments.race.charts import plot_growth, plot_race
from experiments.race.results import RaceResult
from experiments.race.run import run_race
from experiments.race.tables import all_tables, caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def charts(result: RaceResult) -> dict[str, "Figure"]:
    growth = {"growth": plot_growth(result)[0].figure} if result.growth else {}
    return {"race": plot_race(result)[0].figure, **growth}


EXPERIMENT = Experiment(RaceResult, run_race, all_tables, charts, caption)

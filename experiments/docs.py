"""Fill the marked blocks of the README from the committed results: `python -m experiments.docs`. No figure in it is typed by hand.

A block stands between `<!-- NAME-KIND -->` and `<!-- /NAME-KIND -->`, and shows what was measured on one kind of CPU; those of the run of
the notebook have no kind in their name, since the text in them says what it was taken on.
"""

import json
import re
from pathlib import Path

from experiments.attribution import Attribution
from experiments.attribution_report import attribution_caption, attribution_table
from experiments.pruning import PruningControls
from experiments.pruning_report import curve_table, ratio_table, recovery_caption, recovery_table
from experiments.race import tables
from experiments.race.results import BenchResult
from experiments.recipes import RecipeComparison, recipes_caption, recipes_table, safe_sums_table
from experiments.scoring import ScoringComparison, scoring_caption, scoring_table
from gpt2opt.environment import machine_label
from gpt2opt.record import Record, read_record
from gpt2opt.report.tables import perplexity_ratio, quality_table, speed_table, summary_table
from gpt2opt.storage import from_json, write_whole

ROOT = Path(__file__).parents[2]
RECORD = "traces/run.json"
SAFE_SUMS = (
    "Whatever CPU quantizes, weights get steps with which sums fit into 16 bits, so that a CPU without VNNI or AMX can run what another "
    "one wrote. What that costs where nothing saturates, by the default recipe without its gate:"
)
BLOCK = re.compile(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def fill(text: str, root: Path) -> str:
    """Return a document with every block made anew from the results in a checkout.

    Raises:
        ValueError: a block has a name that is not known.
    """
    return BLOCK.sub(lambda found: f"<!-- {found['name']} -->\n\n{_block(found['name'], root)}\n\n<!-- /{found['name']} -->", text)


def _block(name: str, root: Path) -> str:
    if name in OF_THE_RUN:
        return OF_THE_RUN[name](read_record(root / RECORD))
    what, _, kind = name.partition("-")
    if what not in OF_A_KIND:
        known = ", ".join((*OF_THE_RUN, *(f"{name}-KIND" for name in OF_A_KIND)))
        raise ValueError(f"block {name!r} is not known; expected one of {known}")
    result, show = OF_A_KIND[what]
    folder = f"experiments/results/{kind}"
    return show(from_json(result, json.loads((root / folder / f"{what}.json").read_text(encoding="utf-8"))), folder)


def _summary(record: Record) -> str:
    stage = record.stage("4-quantize")
    quality, agreement, facts, sources = stage.measurement.quality, stage.measurement.agreement, record.environment, record.sources
    ratio = perplexity_ratio(quality, stage.control("FP32").quality)
    return (
        f"{summary_table(record).markdown()}\n\nTaken on {machine_label(facts)}, {facts['gpu'] or 'no GPU'}; model: "
        f"{sources['model']['name']}; text: {sources['text']['name']}, {quality.num_tokens:,} tokens scored. Prompt "
        f"{record.settings.prompt_tokens} tokens, {record.settings.new_tokens} new; TTFT and TPOT are medians. INT8 has {ratio} × the "
        f"perplexity of its FP32 control; its mean KL from it is {agreement.mean_kl:.4f} nats per token, and both expect the same token on "
        f"{agreement.top1:.1%} of positions. Every number comes from [`{RECORD}`]({RECORD}), which also holds the raw samples."
    )


def _recipes(result: RecipeComparison, folder: str) -> str:
    shown = f"{recipes_table(result).markdown()}\n\n{recipes_caption(result)} From {_link(folder, 'recipes')}."
    return f"{shown}\n\n{SAFE_SUMS}\n\n{safe_sums_table(result).markdown()}" if result.safe_sums else shown


def _attribution(result: Attribution, folder: str) -> str:
    return (
        f"![The waterfall]({folder}/attribution.png)\n\n{attribution_table(result).markdown()}\n\n{attribution_caption(result)} "
        f"From {_link(folder, 'attribution')}."
    )


def _pruning(result: PruningControls, folder: str) -> str:
    tables = "\n\n".join(show(result).markdown() for show in (curve_table, ratio_table, recovery_table))
    return (
        f"![The controls]({folder}/pruning.png)\n\nPerplexity; of random choices the mean over the seeds, taken in nats, and the range:\n\n"
        f"{tables}\n\n{recovery_caption(result)} From {_link(folder, 'pruning')}."
    )


def _scoring(result: ScoringComparison, folder: str) -> str:
    return f"{scoring_table(result).markdown()}\n\n{scoring_caption(result)} From {_link(folder, 'scoring')}."


def _link(folder: str, name: str) -> str:
    return f"[`{folder}/{name}.json`]({folder}/{name}.json)"


OF_THE_RUN = {
    "run": _summary,
    "turns": lambda record: speed_table(record).markdown(),
    "references": lambda record: quality_table(record).markdown(),
}
OF_A_KIND = {
    "bench": (BenchResult, tables.section),
    "recipes": (RecipeComparison, _recipes),
    "attribution": (Attribution, _attribution),
    "pruning": (PruningControls, _pruning),
    "scoring": (ScoringComparison, _scoring),
}


if __name__ == "__main__":
    readme = ROOT / "README.md"
    write_whole(readme, fill(readme.read_text(encoding="utf-8"), ROOT))

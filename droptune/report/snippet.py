"""A plan as Python that a user can paste.

Where a plan only gives dropout that a model has another rate, that is plain torch, without
droptune. Anything else (dropout that is inserted, of another kind, or whose rate moves; a
rate that stands in the user's own code) `droptune.apply` has to do, and the code says why.
"""

from collections.abc import Iterable, Mapping
from pprint import pformat
from typing import Any

from droptune.report.text import schedule, short, training_line, visible

Row = Mapping[str, Any]

_WIDTH = 96  # columns of a plan that is written out
#: Behind the path of a module that attends once in a forward, and of a recurrent layer.
_LAYER_SITES = ("@attention", "@between")
#: What torch's own dropout modules do; others that do it too are told apart when the code runs.
_OF_TORCH = ("standard", "channel", "alpha", "feature_alpha")

_BY_HAND = '''from torch import nn

RATES = {rates}
{layers}

def set_dropout(model):
    """Set the rates of the plan on a model's own dropout, in place."""
    for path, rate in RATES.items():
        module = model.get_submodule(path)
        if not isinstance(module, nn.modules.dropout._DropoutNd):
            raise TypeError(
                f"{{path}} is no dropout of torch: set its rate of {{rate}} where it keeps that, "
                "or put the plan on with droptune.apply"
            )
        module.p = rate
{set_layers}    return model
'''

_LAYERS = "\n# Attention and recurrent layers, by path\nLAYERS = {rates}\n"

_SET_LAYERS = """    for path, rate in LAYERS.items():
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
            raise TypeError(
                f"{path} is no layer of torch: set its rate of {rate} where your code or config "
                "keeps it, or put the plan on with droptune.apply"
            )
        layer.dropout = rate
"""

_APPLY = '''import droptune

PLAN = droptune.Plan.from_json(
    {plan}
)


def set_dropout(model):
    """Put the plan on a model, in place; droptune.remove takes it off."""
    return droptune.apply(model, PLAN)
'''


def python(plan: Row, sites: Iterable[Row], about: str) -> str:
    """Return Python that defines `set_dropout(model)`.

    Args:
        plan: a plan's JSON.
        sites: of the study, as `Queries.study` gives them.
        about: one line that goes on top.
    """
    found = {site["name"]: site for site in sites}
    entries = plan["sites"]
    beyond = {name: why for name in entries if (why := _beyond(entries[name], found.get(name)))}
    if plan.get("term") is not None:
        beyond["the loss"] = "the plan adds a term to it: train with droptune.ConsistencyLoss"
    # What a plan does not name is off.
    off = [name for name, site in found.items() if site.get("rate") and name not in entries]
    beyond |= {name: _where_it_stands(found[name]) for name in off if not _settable(found[name])}
    title = f"# {visible(about)}\n"
    if plan.get("training"):
        title += f"# The plan holds for training with {training_line(plan['training'])}\n"
    if beyond:
        return _escaped(title + _with_droptune(plan, beyond))
    rates = {name: entries.get(name, {"rate": 0.0})["rate"] for name in [*entries, *off]}
    ordered = {name: rates[name] for name in found if name in rates}
    return _escaped(title + _by_hand(ordered, found))


def _escaped(code: str) -> str:
    """Return code in ASCII, whatever names are in its texts and comments."""
    return code.encode("ascii", "backslashreplace").decode()


def _beyond(entry: Row, site: Row | None) -> str | None:
    """Return why an entry cannot be set by hand, or None."""
    if entry.get("schedule", "constant") != "constant":
        return f"its rate moves ({schedule(entry)}): call droptune.advance before each epoch"
    if site is None or not site.get("kind"):
        return f"{visible(entry['kind'])} {short(entry['rate'])} where the model has no dropout"
    if site["kind"] != entry["kind"]:
        return f"{visible(entry['kind'])} in place of {visible(site['kind'])}"
    return None if _settable(site) else _where_it_stands(site)


def _settable(site: Row) -> bool:
    """Tell whether a site is, or may be, a dropout module or a layer of torch."""
    if site["reach"] == "module":
        return site["kind"] in _OF_TORCH
    return site["name"].endswith(_LAYER_SITES)


def _where_it_stands(site: Row) -> str:
    """Return where the rate of a site is that is not settable."""
    if site["reach"] == "module":
        return "a module that is not of torch, which keeps its rate in a place of its own"
    return "a call in a forward, whose rate stands in your own code"


def _by_hand(rates: Mapping[str, float], found: Mapping[str, Row]) -> str:
    modules = {name: r for name, r in rates.items() if found[name]["reach"] == "module"}
    layers = {name.rpartition("@")[0]: r for name, r in rates.items() if name not in modules}
    return _BY_HAND.format(
        rates=_table(modules),
        layers=_LAYERS.format(rates=_table(layers)) if layers else "",
        set_layers=_SET_LAYERS if layers else "",
    )


def _table(rates: Mapping[str, float]) -> str:
    """Return rates as a dict over several lines."""
    lines = "".join(f"    {path!r}: {rate!r},\n" for path, rate in rates.items())
    return f"{{\n{lines}}}" if lines else "{}"


def _with_droptune(plan: Row, beyond: Mapping[str, str]) -> str:
    reasons = "".join(f"#   {visible(name)}: {why}\n" for name, why in beyond.items())
    text = pformat(dict(plan), sort_dicts=False, width=_WIDTH).replace("\n", "\n    ")
    return f"# Not all of it can be set by hand in torch:\n{reasons}{_APPLY.format(plan=text)}"

"""A page that plays what networks do over one sequence, step by step, and runs them itself."""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from torch import nn

from ntm.tasks import Batch
from ntm.tasks.sampling import Places
from ntm.views.described import describe
from ntm.views.standalone import policy, script_json


def player(
    title: str,
    summary: str,
    batch: Batch,
    places: Places | None,
    networks: Mapping[str, nn.Module],
) -> str:
    """The whole file as text; it opens without a server or a network.

    Args:
        title: Of the page.
        summary: What stands below it.
        batch: One sequence.
        places: Where in it the bits stand that a reader may set; None: nowhere.
        networks: By name; all take and give what the sequence has.

    Raises:
        ConfigurationError: A network cannot be described.

    """
    from plotly.offline import get_plotlyjs

    scripts = {
        "plotly": get_plotlyjs(),
        "machine": _asset("machine.js"),
        "player": _asset("player.js"),
    }
    return Template(_asset("player.html")).substitute(
        scripts,
        policy=policy(*scripts.values()),
        title=html.escape(title),
        summary=html.escape(summary),
        style=_asset("player.css"),
        data=script_json(_data(batch, places, networks)),
    )


def _data(batch: Batch, places: Places | None, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    inputs, targets = (part[:, 0].numpy() for part in batch[:2])
    if places is None:
        nowhere = [np.full(part.shape, -1) for part in (inputs, targets)]
        places = Places(np.zeros(0, int), *nowhere)
    return {
        "inputs": inputs.tolist(),
        "targets": targets.tolist(),
        "mask": batch.mask[:, 0].tolist(),
        "bits": places.bits.tolist(),
        "inputPlaces": places.inputs.tolist(),
        "targetPlaces": places.targets.tolist(),
        "machines": [
            {"name": name, "network": describe(network)} for name, network in networks.items()
        ],
    }


def _asset(name: str) -> str:
    return (resources.files("ntm.views") / "assets" / name).read_text(encoding="utf-8")

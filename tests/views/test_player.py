"""The page that plays a sequence, opened in Chromium and held against the Python networks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runners import wait_until
from torch import nn

from ntm import LSTM, NTM, FeedforwardController, LSTMController
from ntm.commands.configuration import ConfigurationError
from ntm.tasks import AssociativeRecall, Copy, DynamicNGrams, PrioritySort, RepeatCopy, Task
from ntm.tasks.kinds import DRAWN
from ntm.tasks.sampling import EVALUATION, places_at, sample_at
from ntm.views.described import describe
from ntm.views.player import player

sys.path.insert(0, str(Path(__file__).parent.parent / "machine"))
import plain

pytestmark = pytest.mark.pages
COPY = Copy(bits=3, min_length=1, max_length=4)
STAGES = ("similarity", "content", "gated", "shifted", "sharpened")


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """With weights so large that heads move and gates open, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.4 * torch.randn(weight.shape, generator=generator)
    return network.double().eval()


def machine(task: Task, **changes) -> NTM:
    sizes = {"memory_size": 7, "word_size": 4, "controller": lstm_of(6)} | changes
    torch.manual_seed(0)
    return lively(NTM(task.input_size, task.output_size, **sizes))


def lstm_of(hidden_size: int, **changes):
    return lambda input_size: LSTMController(input_size, hidden_size, **changes)


def feedforward_of(hidden_size: int, **changes):
    return lambda input_size: FeedforwardController(input_size, hidden_size, **changes)


MACHINES = {
    "plain": {},
    "heads and shifts": {"num_read_heads": 2, "num_write_heads": 2, "shift_range": 2},
    "writes first": {"read_first": False, "num_write_heads": 2},
    "two layers, learned states": {
        "controller": lstm_of(5, num_layers=2, initial_state="learned"),
        "initial_reads": "learned",
        "initial_memory": "learned",
        "initial_weighting": "learned",
    },
    "feedforward": {"controller": feedforward_of(6, num_layers=2, activation="relu")},
    "activations": {
        "key_activation": "identity",
        "add_activation": "sigmoid",
        "initial_memory": "random",
        "initial_weighting": "uniform",
    },
    "no shifts": {"shift_range": 0},
}


def written(folder: Path, task: Task, point, networks: dict[str, nn.Module], kind=DRAWN) -> Path:
    batch = sample_at(task, EVALUATION, 1, point, kind)
    places = places_at(task, EVALUATION, point, kind)
    path = folder / "page.html"
    path.write_text(player("<b>title</b>", "summary", batch, places, networks), encoding="utf-8")
    return path


def nested(values):
    """Arrays of numbers as a browser hands them over, typed or not."""
    return np.array(values, float)


# What the page holds, as plain lists.
TRACE = """machines[{}].trace.map(now => ({{
  outputs: [...now.outputs], cells: now.cells.map(layer => [...layer]),
  memory: (now.memory ?? []).map(word => [...word]),
  heads: now.heads.map(head => Object.fromEntries(Object.entries(head).map(
    ([name, value]) => [name, typeof value === "number" ? value : [...value]]))),
}}))"""


@pytest.mark.parametrize("changes", MACHINES.values(), ids=MACHINES)
def test_the_machine_in_the_page_is_that_of_python(opened, tmp_path, changes):
    network = machine(COPY, **changes)
    tab = opened(written(tmp_path, COPY, (4,), {"one": network}))
    steps = tab.evaluate(TRACE.format(0))
    batch = sample_at(COPY, EVALUATION, 1, (4,))
    with torch.no_grad():
        trace = network.trace(batch.inputs.double())
    R = network.layout.num_read_heads
    expected = {
        "outputs": torch.sigmoid(trace.logits[:, 0]),
        "memory": trace.memory[:, 0],
        "read": trace.reads[:, 0],
        "erase": trace.erases[:, 0],
        "add": trace.adds[:, 0],
        "weightings": torch.cat([trace.read_weightings, trace.write_weightings], 2)[:, 0],
    }
    for t, step in enumerate(steps):
        found = {
            "outputs": step["outputs"],
            "memory": step["memory"],
            "read": [head["read"] for head in step["heads"][:R]],
            "erase": [head["erase"] for head in step["heads"][R:]],
            "add": [head["add"] for head in step["heads"][R:]],
            "weightings": [head["sharpened"] for head in step["heads"]],
        }
        for name, values in found.items():
            np.testing.assert_allclose(
                nested(values), expected[name][t].numpy(), atol=1e-8, err_msg=f"{name} at {t}"
            )


@pytest.mark.parametrize("read_first", [True, False])
def test_stages_are_the_equations_of_the_paper(opened, tmp_path, read_first):
    network = machine(COPY, num_write_heads=2, read_first=read_first)
    with torch.no_grad():  # far above the floor of norms, which the plain loops leave out
        network.initial_memory = nn.Module()
        network.initial_memory.forward = lambda size, like: like.new_tensor(
            np.random.default_rng(0).normal(size=(size, 4))
        )
    start = network.initial_state(1)
    tab = opened(written(tmp_path, COPY, (3,), {"one": network}))
    memory, former = start.memory[0].tolist(), start.weightings[0].tolist()
    for step in tab.evaluate(TRACE.format(0)):
        after = step["memory"]
        for h, head in enumerate(step["heads"]):
            seen = after if h == 0 and not read_first else memory
            similarity = [plain.cosine(head["key"], word) for word in seen]
            content = plain.content(seen, head["key"], head["strength"])
            gated = plain.interpolate(content, former[h], head["gate"])
            shifted = plain.shift(gated, head["shift"])
            sharpened = plain.sharpen(shifted, head["sharpening"])
            derived = (similarity, content, gated, shifted, sharpened)
            for name, values in zip(STAGES, derived, strict=True):
                np.testing.assert_allclose(head[name], values, atol=1e-9, err_msg=name)
            assert head["former"] == former[h]
        memory, former = after, [head["sharpened"] for head in step["heads"]]


def test_the_lstm_in_the_page_is_that_of_python(opened, tmp_path):
    torch.manual_seed(0)
    network = lively(LSTM(COPY.input_size, COPY.output_size, hidden_size=5, num_layers=2))
    tab = opened(written(tmp_path, COPY, (4,), {"one": network}))
    steps = tab.evaluate(TRACE.format(0))
    inputs = sample_at(COPY, EVALUATION, 1, (4,)).inputs.double()
    state = None
    for t, step in enumerate(steps):
        with torch.no_grad():
            logits, state = network(inputs[t : t + 1], state)
        np.testing.assert_allclose(step["outputs"], torch.sigmoid(logits[0, 0]), atol=1e-9)
        np.testing.assert_allclose(step["cells"], state[1][:, 0], atol=1e-9)
    assert tab.locator("[data-stage=cells] .scatterlayer .trace").count() == 2
    assert tab.locator("#heads").is_hidden()


def test_shown_numbers_are_those_of_the_network(opened, tmp_path):
    network = machine(COPY, num_read_heads=2)
    tab = opened(written(tmp_path, COPY, (4,), {"one": network}), "#step=6")
    batch = sample_at(COPY, EVALUATION, 1, (4,))
    with torch.no_grad():
        trace = network.trace(batch.inputs.double())
    rows = tab.locator(".orders tbody tr").all_inner_texts()
    weightings = [*trace.read_weightings[6, 0], *trace.write_weightings[6, 0]]
    assert [row.split("\t")[0] for row in rows] == ["read head 1", "read head 2", "write head"]
    for row, weighting in zip(rows, weightings, strict=True):
        location, weight = row.split("\t")[-2:]
        assert (int(location), weight) == (int(weighting.argmax()), f"{weighting.max():.4f}")
    said = tab.locator(".answer tbody tr").all_inner_texts()
    outputs = torch.sigmoid(trace.logits[6, 0])
    assert said[1].split("\t")[1:] == [f"{output:.4f}" for output in outputs]
    assert said[0].split("\t")[1:] == [f"{int(bit)}" for bit in batch.targets[6, 0]]
    wrong = (outputs > 0.5) != (batch.targets[6, 0] > 0.5)
    assert [cell == "✕" for cell in said[2].split("\t")[1:]] == wrong.tolist()
    due = batch.mask[:, 0] > 0
    bad = ((trace.logits[:, 0] > 0) != (batch.targets[:, 0] > 0.5))[due].sum()
    assert f"{bad} of 12 bits wrong" in tab.locator(".told").inner_text()


def test_it_steps_scrubs_plays_and_links(opened, tmp_path):
    path = written(tmp_path, COPY, (4,), {"one": machine(COPY)})
    tab = opened(path)
    at = tab.locator("#at")
    assert at.inner_text() == "0 of 8"
    for key, expected in (
        ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 8), ("ArrowRight", 8),
        ("Home", 0), ("ArrowLeft", 0),
    ):  # fmt: skip
        tab.keyboard.press(key)
        assert at.inner_text() == f"{expected} of 8"
    tab.locator("#forward").click()
    tab.locator("#last").click()
    tab.locator("#back").click()
    assert at.inner_text() == "7 of 8"
    tab.locator("#step").fill("4")
    assert at.inner_text() == "4 of 8"
    assert tab.locator("#link").get_attribute("href").startswith("#step=4&")
    shown = tab.url
    tab.locator("#first").click()
    tab.locator("#speed").select_option("20")
    tab.locator("h1").click()
    tab.keyboard.press("Space")
    wait_until(tab, "step === T - 1 && playing === null")
    tab.locator("#speed").select_option("1")
    tab.locator("#play").click()
    assert tab.locator("#play").inner_text() == "Pause"
    tab.locator("#play").click()
    assert tab.evaluate("playing") is None
    again = opened(path, shown[shown.index("#") :])
    assert again.locator("#at").inner_text() == "4 of 8"
    for wrong in ("#step=x", "#step=99&bits=zz&head=none"):
        assert opened(path, wrong).locator("#at").inner_text() in ("0 of 8", "8 of 8")


def test_the_chosen_head_is_the_one_that_is_shown(opened, tmp_path):
    tab = opened(written(tmp_path, COPY, (3,), {"one": machine(COPY)}), "#step=2")
    head = "machines[0].trace[2].heads"
    for name, place in (("read head", 0), ("write head", 1)):
        tab.get_by_label(name, exact=True).check()
        for stage in STAGES:
            drawn = tab.evaluate(
                f"[...document.querySelector('[data-stage={stage}] .chart').data[0].y]"
            )
            where = tab.evaluate("machines[0].places")
            values = tab.evaluate(f"[...{head}[{place}].{stage}]")
            assert drawn == [values[i] for i in where], stage
        assert tab.locator("tr.looked th").inner_text() == name


def test_locations_in_use_are_a_stretch_of_the_ring(opened, tmp_path):
    """A head that goes backwards from 0 is seen whole, and all locations when asked for."""
    network = machine(COPY, memory_size=40)
    with torch.no_grad():  # always one location back, sharply
        network.emit.weight.zero_()
        each = sum(network.layout.address_sizes)
        for head in range(network.layout.num_heads):
            gate = head * each + network.layout.word_size + 1
            network.emit.bias[gate : gate + 5] = torch.tensor([-30.0, 30.0, 0.0, 0.0, 5.0])
    tab = opened(written(tmp_path, COPY, (2,), {"one": network}))
    shown = [39, 38, 37, 36, 35]
    assert tab.evaluate("machines[0].places") == [34, *shown[::-1], 0]
    tab.locator("#all").check()
    assert tab.evaluate("machines[0].places") == list(range(40))


TASKS = {
    "copy": (Copy(bits=3), (3,)),
    "repeat_copy": (RepeatCopy(bits=3), (2, 2)),
    "associative_recall": (AssociativeRecall(bits=4), (3,)),
    "dynamic_ngrams": (DynamicNGrams(steps=12, context=2), (12,)),
    "priority_sort": (PrioritySort(bits=3), (5,)),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_readers_bits_are_a_sequence_of_the_task(opened, tmp_path, name):
    """The page's inputs, targets and outputs are what task and network make of those bits."""
    task, point = TASKS[name]
    network = machine(task)
    tab = opened(written(tmp_path, task, point, {"one": network}))
    tab.locator("#random").click()
    bits = tab.evaluate("bits")
    assert set(bits) == {0, 1}

    def chosen(rng, kind, shape):
        type(task).vectors_of(task, rng, kind, shape)
        return np.array(bits).reshape(shape)

    task.vectors_of = chosen
    try:
        batch = sample_at(task, EVALUATION, 1, point)
    finally:
        del task.vectors_of
    assert np.array_equal(tab.evaluate("inputs"), batch.inputs[:, 0].numpy())
    assert np.array_equal(tab.evaluate("targets"), batch.targets[:, 0].numpy())
    with torch.no_grad():
        outputs = torch.sigmoid(network(batch.inputs.double())[0][:, 0])
    found = [step["outputs"] for step in tab.evaluate(TRACE.format(0))]
    np.testing.assert_allclose(found, outputs.numpy(), atol=1e-8)


def test_a_bit_is_set_by_a_click_and_by_its_box(opened, tmp_path):
    tab = opened(written(tmp_path, COPY, (4,), {"one": machine(COPY)}), "#step=1")
    before = tab.evaluate("inputs[1]")
    tab.locator("#channels input").nth(1).click()
    flipped = [*before]
    flipped[1] = 1 - flipped[1]
    assert tab.evaluate("inputs[1]") == flipped
    assert tab.evaluate("targets[6]") == flipped[:3]  # the copy of the second vector
    chart = tab.locator(".timeline .nsewdrag").first
    box = chart.bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 2.5 / 9, box["y"] + box["height"] * 0.5 / 4)
    wait_until(tab, "step === 2")
    assert tab.evaluate("inputs[2][0] + targets[7][0]") != 2 * tab.evaluate("page.bits[6]")
    assert not tab.locator("#channels input").nth(3).is_enabled()  # the delimiter is not free
    link = tab.url
    assert "bits=" in link
    again = opened(tmp_path / "page.html", link[link.index("#") :])
    assert again.evaluate("inputs") == tab.evaluate("inputs")
    tab.locator("#drawn").click()
    assert tab.evaluate("inputs[1]") == before
    assert "bits=" not in tab.url
    tab.locator("#zeros").click()
    assert not np.any(tab.evaluate("targets"))


def test_where_bits_decide_how_a_sequence_is_drawn_they_cannot_be_set(opened, tmp_path):
    task, point = TASKS["associative_recall"]
    path = written(tmp_path, task, point, {"one": machine(task)}, "shared_start")
    assert opened(path).locator("#drawing").is_hidden()


def test_two_networks_go_in_step(opened, tmp_path):
    torch.manual_seed(0)
    networks = {
        "a <i>machine</i>": machine(COPY),
        "an LSTM": lively(LSTM(COPY.input_size, COPY.output_size, 5, 1)),
    }
    tab = opened(written(tmp_path, COPY, (4,), networks))
    assert tab.locator("h2").all_inner_texts()[-2:] == list(networks)
    tab.keyboard.press("ArrowRight")
    tab.locator("#ones").click()
    for told in tab.locator(".told").all_inner_texts():
        assert told.startswith("Step 1: hears 1 1 1 0;")


@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_used_by_everyone(opened, tmp_path, width):
    from axe_playwright_python.sync_playwright import Axe

    networks = {"one": machine(COPY), "other": lively(LSTM(COPY.input_size, 3, 5, 1))}
    tab = opened(written(tmp_path, COPY, (4,), networks), "#step=7", width)
    # Scripts of a tool are let in through the browser, not through the page's policy.
    found = Axe().run(tab)
    told = [(v["id"], v["nodes"][0]["html"][:200]) for v in found.response["violations"]]
    assert told == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.title() == "<b>title</b>"


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (nn.Linear(4, 3), "Linear"),
        (NTM(4, 3, controller=nn.Linear(24, 5)), "AdaptedController"),
        (NTM(4, 3, controller=feedforward_of(5, activation=torch.sin)), "FeedforwardController"),
    ],
    ids=["no network of ours", "a controller of one's own", "an activation of one's own"],
)
def test_what_the_page_cannot_run_is_refused(network, told):
    with pytest.raises(ConfigurationError, match=told):
        describe(network)


def test_a_whole_run_from_the_command(opened, run_command, tmp_path):
    from runners import SMALL

    kept = ["callbacks.keep_every=96", "callbacks.keep_last=3"]
    assert run_command("run_train", *SMALL, *kept, "model=ntm") == 0
    run = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    assert run_command("run_inside", f"run={run}", "at=[3,8]", "draw=[page,animation,learned]") == 0
    made = {path.name for path in (run / "figures").iterdir() if path.suffix in (".html", ".gif")}
    assert made == {
        "inside_length_3.html", "inside_length_8.html", "inside_length_3.gif",
        "inside_length_8.gif", "learned_length_3_length_8.gif",
    }  # fmt: skip
    assert opened(run / "figures" / "inside_length_8.html").locator("#at").inner_text() == "0 of 16"
    several = "checkpoint=[seq_288,best]"
    assert run_command("run_inside", f"run={run}", several, "kind=zeros", "memory_size=20") == 0
    (path,) = (run / "figures").glob("*_zeros_memory_20_of_2.html")
    tab = opened(path)
    assert tab.locator("article").count() == 2
    assert not np.any(tab.evaluate("targets"))
    assert tab.evaluate("machines[0].trace[0].memory.length") == 20

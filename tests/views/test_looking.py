"""run_inside.py: what it draws, and what it refuses. Its page is opened in test_player.py."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from runners import SMALL, run_here

from ntm import NTM
from ntm.tasks.task import Batch
from ntm.views.animations import Moment, at_work, draw_learned, learning
from ntm.views.described import describe
from ntm.views.probing import Answer, Inside


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An NTM with three checkpoints that were kept, and an LSTM with none."""
    folder = tmp_path_factory.mktemp("runs")
    small_lstm = ["model=lstm", "model.network.hidden_size=8", "model.network.num_layers=2"]
    of_both = [override for override in SMALL if not override.startswith("model.")]
    with pytest.MonkeyPatch.context() as patch:
        kept = ["callbacks.keep_every=96", "callbacks.keep_last=3"]
        assert run_here(patch, folder, "run_train", *SMALL, *kept) == 0
        assert run_here(patch, folder, "run_train", *of_both, *small_lstm) == 0
        other = ["task=repeat_copy", "name=other", "model=lstm", "trainer.fast_dev_run=false"]
        repeats = [*of_both[3:], *small_lstm[1:], "sequences=16", "validate_every=16",
                   "batch_size=16", "evaluation.at=null", "task.max_length=2",
                   "task.max_repeats=2"]  # fmt: skip
        assert run_here(patch, folder, "run_train", *repeats, *other) == 0
    return folder / "outputs"


def frames(content: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(content))
    found = []
    for frame in range(image.n_frames):
        image.seek(frame)
        found.append(np.asarray(image.convert("RGB")))
    return found


def test_files_are_named_by_what_they_show(run_command, trained, tmp_path, capsys):
    run = trained / "copy" / "ntm" / "seed_0"
    asked = ["at=[3,8]", "draw=[page,animation,learned]", f"folder={tmp_path / 'elsewhere'}"]
    assert run_command("run_inside", f"run={run}", *asked) == 0
    made = {path.name for path in (tmp_path / "elsewhere" / "figures").iterdir()}
    assert made == {
        "inside_length_3.html", "inside_length_8.html", "inside_length_3.gif",
        "inside_length_8.gif", "learned_length_3_length_8.gif", "learned_length_3_length_8.png",
    }  # fmt: skip
    told = capsys.readouterr().out.split()
    assert {line.rpartition("/")[2] for line in told} == made
    animation = tmp_path / "elsewhere" / "figures" / "inside_length_8.gif"
    assert len(frames(animation.read_bytes())) == 17  # steps of a copy of 8
    learned = tmp_path / "elsewhere" / "figures" / "learned_length_3_length_8.gif"
    assert len(frames(learned.read_bytes())) == 3  # checkpoints
    assert not list((run / "figures").glob("*.html"))


def test_without_a_point_it_is_the_hardest_of_training_that_is_shown(run_command, trained):
    run = trained / "copy" / "ntm" / "seed_0"
    assert run_command("run_inside", f"run={run}") == 0
    assert (run / "figures" / "inside_length_6.html").is_file()
    (run / "figures" / "inside_length_6.html").unlink()


WRONG = {
    "no run": ([], ["run", "outputs/copy/ntm/seed_0"]),
    "a run that is none": (["run={}/copy"], ["run", "copy"]),
    "no runs": (["run=[]"], ["run", "[]"]),
    "no such checkpoint": (["run={ntm}", "checkpoint=seq_7"], ["checkpoint", "seq_7", "seq_480"]),
    "no such drawing": (["run={ntm}", "draw=film"], ["draw", "film", "page, animation, learned"]),
    "nothing to draw": (["run={ntm}", "draw=[]"], ["draw", "[]"]),
    "no such kind": (["run={ntm}", "kind=odd"], ["kind", "odd", "sparse"]),
    "a point that is none": (["run={ntm}", "at=0"], ["at", "length", "at least 1"]),
    "points of another task": (["run={ntm}", "at=[{items: 3}]"], ["at", "length", "items"]),
    "too long for a browser": (["run={ntm}", "at=50000"], ["at", "10,000,000", "memory_size"]),
    "an LSTM at work": (["run={lstm}", "draw=animation"], ["draw", "LSTM", "no memory"]),
    "two at work": (["run=[{ntm},{lstm}]", "draw=animation"], ["run", "animation"]),
    "learned by two": (["run=[{ntm},{lstm}]", "draw=learned"], ["run", "learned"]),
    "none were kept": (["run={lstm}", "draw=learned"], ["draw=learned", "callbacks.keep_every"]),
    "memory of an LSTM": (["run={lstm}", "memory_size=20"], ["memory_size", "LSTM"]),
    "two tasks": (["run=[{ntm},{other}]"], ["run", "one task", "repeat_copy"]),
    "a key that is none": (["run={ntm}", "sequences=3"], ["sequences", "no key"]),
}


@pytest.mark.parametrize(("overrides", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    run_command, trained, capsys, overrides, told
):
    places = {
        "ntm": trained / "copy" / "ntm" / "seed_0",
        "lstm": trained / "copy" / "lstm" / "seed_0",
        "other": trained / "other" / "lstm" / "seed_0",
    }
    before = sorted(trained.rglob("*"))
    for name, place in places.items():
        overrides = [override.replace(f"{{{name}}}", str(place)) for override in overrides]
    overrides = [override.replace("{}", str(trained)) for override in overrides]
    capsys.readouterr()
    assert run_command("run_inside", *overrides) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in told), line
    assert sorted(trained.rglob("*")) == before


def test_a_strangers_folder_is_not_built(run_command, trained, capsys):
    folder = trained / "copy" / "ntm" / "seed_0"
    config = (folder / "config.yaml").read_text()
    try:
        (folder / "config.yaml").write_text(config.replace("ntm.tasks.Copy", "os.getcwd"))
        assert run_command("run_inside", f"run={folder}") == 2
        assert "allow=[os.getcwd]" in capsys.readouterr().err
    finally:
        (folder / "config.yaml").write_text(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_weights_are_described_as_they_are(dtype):
    network = NTM(4, 3, memory_size=5, word_size=2).to(dtype)
    told = describe(network)["emit"]["weight"]
    values = np.frombuffer(base64.b64decode(told["data"]), f"<f{told['bytes']}")
    assert told["shape"] == list(network.emit.weight.shape)
    assert values.tolist() == network.emit.weight.flatten().tolist()


def an_inside(steps: int) -> tuple[Inside, Batch]:
    """One head of each sort that goes from location 0 to the right, one location a step."""
    at = np.eye(steps)[:, None, :]
    inside = Inside(
        inputs=np.zeros((steps, 2)),
        outputs=np.full((steps, 1), 0.9),
        adds=np.zeros((steps, 1, 3)),
        write_weightings=at,
        memory=np.tril(np.ones((steps, steps)))[:, :, None] * np.ones(3),
        read_weightings=at[::-1],
        reads=np.zeros((steps, 1, 3)),
    )
    mask = torch.zeros(steps, 1)
    mask[2:] = 1
    return inside, Batch(torch.zeros(steps, 1, 2), torch.ones(steps, 1, 1), mask)


def columns_of(frame: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Mean column of a colour in the lower half of a frame, as a share of its width."""
    half = frame[frame.shape[0] // 2 :].astype(int)
    near = np.abs(half - np.array(colour)).sum(-1) < 60
    return float(np.nonzero(near)[1].mean()) / frame.shape[1]


def test_heads_at_work_move_as_they_did():
    drawn = frames(at_work(*an_inside(6), "title"))
    assert len(drawn) == 6
    writing = [columns_of(frame, (213, 94, 0)) for frame in drawn]
    reading = [columns_of(frame, (0, 114, 178)) for frame in drawn]
    assert writing == sorted(writing)
    assert reading == sorted(reading, reverse=True)
    assert writing[-1] - writing[0] > 0.5
    assert reading[0] - reading[-1] > 0.5


def test_a_long_sequence_has_fewer_frames():
    assert len(frames(at_work(*an_inside(250), ""))) == 125


def an_answer(wrong: int) -> Answer:
    target = np.ones((6, 2), np.float32)
    output = target.copy()
    output.ravel()[:wrong] = 0.1
    return Answer(target, output, output < 0.5)


def test_rows_are_of_the_time_in_which_it_learned():
    moments = [Moment(1000 * i, [an_answer(max(6 - i, 0))]) for i in range(1, 41)]
    figure = draw_learned(moments, ["length 6"], "title")
    told = [axis.get_xlabel() for axis in figure.axes[1:]]
    assert told == [f"{wrong} of 12 bits wrong" for wrong in (5, 4, 3, 2, 1, 0, 0)]
    assert figure.axes[-1].get_ylabel() == "40,000\nsequences"
    assert len(frames(learning(moments, ["length 6"], "title"))) == 40


def test_a_run_that_never_learned_is_shown_to_its_end():
    moments = [Moment(1000 * i, [an_answer(3)]) for i in range(1, 4)]
    figure = draw_learned(moments, ["length 6"], "title")
    assert len(figure.axes) == 1 + 3

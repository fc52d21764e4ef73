"""Pictures show the arrays they are given, unchanged, under names that say what they are."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ntm.views.figures import (
    Curve,
    Map,
    Panel,
    draw_answer,
    draw_curves,
    draw_inside,
    draw_maps,
    draw_shares,
    image_array,
    log_ticks,
    per_cent,
    png,
    svg,
)
from ntm.views.probing import Answer, Inside

T, I, O, N, M, R, W = 20, 4, 3, 6, 5, 2, 2  # noqa: E741


def an_answer(steps: int = 4, bits: int = O) -> Answer:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (steps, bits)).astype(np.float32)
    output = rng.random((steps, bits), np.float32)
    return Answer(target, output, (output > 0.5) != (target > 0.5))


def an_inside(locations: int = N, used: list[int] | None = None) -> Inside:
    """A machine whose heads stay on the locations given, else on all."""
    rng = np.random.default_rng(1)
    used = list(range(locations)) if used is None else used

    def weightings(heads: int) -> np.ndarray:
        values = np.zeros((T, heads, locations), np.float32)
        for t in range(T):
            values[t, :, used[t % len(used)]] = 0.9
        return values + 0.01 * rng.random(values.shape, np.float32)

    return Inside(
        inputs=rng.random((T, I), np.float32),
        outputs=rng.random((T, O), np.float32),
        adds=rng.normal(size=(T, W, M)),
        write_weightings=weightings(W),
        memory=rng.normal(size=(T, locations, M)),
        read_weightings=weightings(R),
        reads=rng.normal(size=(T, R, M)),
    )


def copies(arrays) -> list[np.ndarray]:
    return [array.copy() for array in arrays]


def panels(figure: Figure) -> dict[str, np.ndarray]:
    """The drawn data by the first words of each panel's label, time along the first axis."""
    return {
        axis.get_ylabel().rpartition("\n")[0]: np.asarray(axis.images[0].get_array()).T
        for axis in figure.axes
        if axis.images and axis.get_ylabel()
    }


def axis_of(figure: Figure, name: str):
    return next(axis for axis in figure.axes if axis.get_ylabel().startswith(name))


def seen_texts(figure: Figure) -> list[Text]:
    """Labels and titles, once their places are known."""
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("small", [1, 1e-3, 1e-5])
@pytest.mark.parametrize("locations", [N, 1100])
def test_nothing_written_is_cut_off_at_an_edge(locations, small):
    seen = an_inside(locations, list(range(1000, 1010)) if locations > N else None)
    seen = seen._replace(adds=seen.adds * small, reads=-seen.reads * small)
    for figure in (draw_inside(seen, "length 20"), draw_answer(an_answer(), "length 4")):
        width, height = figure.get_size_inches() * figure.dpi
        texts = seen_texts(figure)
        assert len(texts) > 10
        for text in texts:
            extent = text.get_window_extent()
            assert extent.x0 >= 0, text
            assert extent.y0 >= 0, text
            assert extent.x1 <= width, text
            assert extent.y1 <= height, text


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_time_steps_are_whole(steps):
    axis = draw_answer(an_answer(steps), "").axes[2]
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


class TestAnswer:
    def test_shows_the_arrays(self):
        answer = an_answer()
        drawn = panels(draw_answer(answer, "copy, length 4"))
        assert list(drawn) == ["target", "output", "error"]
        np.testing.assert_array_equal(drawn["target"], answer.target)
        np.testing.assert_array_equal(drawn["output"], answer.output)
        np.testing.assert_allclose(drawn["error"], abs(answer.output - answer.target))

    def test_all_panels_have_the_same_scale(self):
        """A faint output must not look like a sure one."""
        faint = an_answer()._replace(output=np.full((4, O), 0.4, np.float32))
        figure = draw_answer(faint, "")
        for name in ("target", "output", "error"):
            assert axis_of(figure, name).images[0].get_clim() == (0, 1)

    def test_changes_nothing_it_is_given(self):
        answer = an_answer()
        before = copies(answer)
        draw_answer(answer, "")
        for array, old in zip(answer, before, strict=True):
            np.testing.assert_array_equal(array, old)

    def test_says_what_it_shows(self):
        answer = an_answer()
        figure = draw_answer(answer, "copy, length 4")
        title = figure.get_suptitle()
        assert "copy, length 4" in title
        assert f"{int(answer.wrong.sum())} of {4 * O} bits" in title
        assert figure.axes[2].get_xlabel()
        for name in ("target", "output", "error"):
            assert axis_of(figure, name).get_ylabel() == f"{name}\nbit"

    @pytest.mark.parametrize(("steps", "bits"), [(1, 1), (1, 8), (300, 1)])
    def test_any_size(self, steps, bits):
        answer = an_answer(steps, bits)
        drawn = panels(draw_answer(answer, ""))
        np.testing.assert_array_equal(drawn["target"], answer.target)


class TestInside:
    def test_shows_the_arrays(self):
        inside = an_inside()
        drawn = panels(draw_inside(inside, "t"))
        assert list(drawn) == [
            "inputs",
            "adds",
            "write weighting",
            "memory\nlength of each word",
            "read weighting",
            "reads",
            "outputs",
        ]
        np.testing.assert_array_equal(drawn["inputs"], inside.inputs)
        np.testing.assert_array_equal(drawn["outputs"], inside.outputs)
        # Heads one below the other.
        for name, values in (("adds", inside.adds), ("reads", inside.reads)):
            heads = [values[:, head] for head in range(values.shape[1])]
            np.testing.assert_array_equal(drawn[name], np.hstack(heads))
        for name, values in (
            ("write weighting", inside.write_weightings),
            ("read weighting", inside.read_weightings),
        ):
            np.testing.assert_array_equal(drawn[name], np.maximum(values[:, 0], values[:, 1]))
        words = np.sqrt((inside.memory**2).sum(-1))
        np.testing.assert_allclose(drawn["memory\nlength of each word"], words, rtol=1e-6)

    def test_changes_nothing_it_is_given(self):
        inside = an_inside()
        before = copies(inside)
        draw_inside(inside, "")
        for array, old in zip(inside, before, strict=True):
            np.testing.assert_array_equal(array, old)

    def test_says_what_it_shows(self):
        figure = draw_inside(an_inside(), "Inside the machine: copy, length 20")
        assert figure.get_suptitle() == "Inside the machine: copy, length 20"
        units = [axis.get_ylabel().rpartition("\n")[2] for axis in figure.axes if axis.images][:7]
        assert units == [
            "channel",
            "element",
            "location",
            "location",
            "location",
            "element",
            "bit",
        ]
        assert "time step" in {axis.get_xlabel() for axis in figure.axes}

    @pytest.mark.parametrize(
        ("used", "shown"),
        [
            ([18, 19, 0, 1], [17, 18, 19, 0, 1, 2]),
            ([4, 5, 6], [3, 4, 5, 6, 7]),
            ([0], [19, 0, 1]),
            ([19], [18, 19, 0]),
            (list(range(19)), list(range(20))),
            (list(range(20)), list(range(20))),
        ],
        ids=["over the end", "in the middle", "first", "last", "nearly all", "all"],
    )
    def test_shows_the_stretch_of_the_ring_that_was_used(self, used, shown):
        inside = an_inside(20, used)
        figure = draw_inside(inside, "")
        drawn = panels(figure)["write weighting"]
        np.testing.assert_array_equal(drawn, inside.write_weightings.max(1)[:, shown])
        axis = axis_of(figure, "write weighting")
        marks = {
            int(place): int(text.get_text())
            for place, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
        }
        assert marks == {place: shown[place] for place in marks}
        assert {0, len(shown) - 1} <= set(marks)

    def test_heads_that_settle_nowhere_show_all_locations(self):
        inside = an_inside()
        even = np.full((T, 2, N), 0.05)
        drawn = panels(
            draw_inside(inside._replace(write_weightings=even, read_weightings=even), "")
        )
        assert drawn["read weighting"].shape == (T, N)

    @pytest.mark.parametrize("channels", [1, 2, 9])
    def test_channels_are_whole(self, channels):
        seen = an_inside()
        seen = seen._replace(inputs=np.zeros((len(seen.inputs), channels)))
        axis = axis_of(draw_inside(seen, ""), "inputs")
        ticks = [tick for tick in axis.get_yticks() if -0.5 <= tick <= channels - 0.5]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)

    def test_an_empty_memory_can_be_drawn(self):
        empty = Inside(*(np.zeros_like(array) for array in an_inside()))
        image_array(draw_inside(empty, ""))


def a_panel(scale: str = "to 0", **more) -> Panel:
    x = np.array([100.0, 200.0, 300.0])
    y = np.array([40.0, 0.05, 0.0])
    curves = [
        Curve("ntm", 0, 0, x, y, y - 1, y + 1, thin_from=200.0),
        Curve("lstm $x", 1, 1, x, y + 2, weight="thin", run="seed_0", broken_off=True),
        Curve("lstm $x", 1, 1, x, y + 3, weight="dots", run="seed_1"),
    ]
    return Panel("validation", "sequences", "wrong bits", scale, curves, **more)


class TestCurves:
    def test_shows_the_numbers(self):
        panel = a_panel()
        figure = draw_curves([panel], "t")
        axis = figure.axes[0]
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
        ntm, lstm, dots = panel.curves
        assert (ntm.x[:2].tolist(), ntm.y[:2].tolist()) in drawn  # and the rest of it, thin
        assert (ntm.x[1:].tolist(), ntm.y[1:].tolist()) in drawn
        assert (lstm.x.tolist(), lstm.y.tolist()) in drawn
        assert (dots.x.tolist(), dots.y.tolist()) in drawn
        assert ([300.0], [2.0]) in drawn  # the mark of an unfinished run
        band = axis.collections[0].get_paths()[0].vertices
        assert {(100.0, 39.0), (100.0, 41.0), (300.0, 1.0)} <= set(map(tuple, band))

    def test_the_line_is_thin_where_it_stands_on_fewer_runs(self):
        lines = draw_curves([a_panel()], "").axes[0].lines
        width = {tuple(line.get_xdata()): line.get_linewidth() for line in lines}
        assert width[(100.0, 200.0)] > width[(200.0, 300.0)]

    def test_says_what_it_shows(self):
        figure = draw_curves([a_panel(marked=(1, 20)), a_panel("log")], "Curves")
        assert figure.get_suptitle() == "Curves"
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["ntm", r"lstm \$x", "range in training"]
        assert figure.axes[0].get_title() == "validation"
        assert figure.axes[0].get_xlabel() == "sequences"
        assert figure.axes[0].get_ylabel() == "wrong bits"

    def test_zero_wrong_bits_are_in_sight_and_the_top_is_not_cut(self):
        low, high = draw_curves([a_panel()], "").axes[0].get_ylim()
        assert -0.02 < low < 0
        assert high >= 43

    def test_a_loss_is_on_a_logarithmic_axis_though_its_band_is_not_above_zero(self):
        axis = draw_curves([a_panel("log")], "").axes[0]
        assert axis.get_yscale() == "log"
        low, high = axis.get_ylim()
        assert 0 < low < 0.05
        assert 40 < high < 100

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_no_frame_is_left_empty(self, count):
        axes = draw_curves([a_panel() for _ in range(count)], "").axes
        assert [axis.axison for axis in axes] == [bool(axis.lines) for axis in axes]
        assert sum(axis.axison for axis in axes) == count

    @pytest.mark.parametrize(
        ("low", "high"), [(133.0, 187.0), (0.01, 900.0), (5.0, 5.0), (0.46, 0.67)]
    )
    def test_a_logarithmic_axis_fits_its_curves_and_has_plain_numbers(self, low, high):
        curve = Curve("ntm", 0, 0, np.array([1.0, 2.0]), np.array([high, low]))
        figure = draw_curves([Panel("", "sequences", "bits", "log", [curve])], "")
        axis = figure.axes[0]
        bottom, top = axis.get_ylim()
        assert bottom < low <= high < top
        assert np.log(top / bottom) <= 1.1 * np.log(high / low) + 0.1
        texts = [text.get_text() for text in seen_texts(figure)]
        assert not any("times" in text for text in texts)
        figure.draw_without_rendering()
        marks = [label.get_text() for label in axis.get_yticklabels(which="both")]
        assert any(marks)
        assert not any("e" in mark for mark in marks)

    def test_models_differ_in_colour_and_without_it(self):
        lines = draw_curves([a_panel()], "").axes[0].lines
        ntm = next(line for line in lines if tuple(line.get_ydata()) == (40.0, 0.05))
        lstm = next(line for line in lines if tuple(line.get_ydata()) == (42.0, 2.05, 2.0))
        assert ntm.get_color() != lstm.get_color()
        assert ntm.get_linestyle() != lstm.get_linestyle()

    def test_ticks_of_many_lengths_do_not_run_into_one_another(self):
        every = np.arange(1.0, 121.0)
        ticks = log_ticks(Panel("", "", "", "share", [Curve("", 0, 0, every, every)]))
        assert len(ticks) <= 13
        few = np.array([10.0, 20.0, 120.0, 1000.0])
        panel = Panel("", "", "", "share", [Curve("", 0, 0, few, few)], log_x=True)
        assert log_ticks(panel) == few.tolist()
        axis = draw_curves([panel], "").axes[0]
        assert [text.get_text() for text in axis.get_xticklabels()] == ["10", "20", "120", "1,000"]

    def test_the_axis_is_linear_below_the_tasks_own_bound(self):
        axis = draw_curves([a_panel(bound=5.0)], "").axes[0]
        places = axis.transData.transform([(0, 0.0), (0, 2.5), (0, 5.0), (0, 50.0)])[:, 1]
        below, above = places[1] - places[0], places[2] - places[1]
        assert below == pytest.approx(above)
        assert [5.0, 5.0] in [list(line.get_ydata()) for line in axis.lines]

    def test_an_unknown_scale_is_refused(self):
        with pytest.raises(ValueError, match=r"^scale must be .*got 'steep'"):
            draw_curves([a_panel("steep")], "")

    def test_nothing_to_draw_is_drawn(self):
        empty = Panel("", "", "", "log", [])
        image_array(draw_curves([empty, empty._replace(scale="to 0", log_x=True)], ""))


def test_an_svg_is_the_same_bytes_again():
    one, other = (svg(draw_curves([a_panel()], "t")) for _ in range(2))
    assert one == other
    assert one.startswith(b"<?xml")


def test_drawn_as_bytes():
    figure = draw_answer(an_answer(), "x")
    image = image_array(figure)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.std() > 0
    assert png(figure).startswith(b"\x89PNG\r\n\x1a\n")


class TestShares:
    def test_every_share_is_in_its_cell(self):
        shares = [[1.0, 0.999], [0.5, 0.0]]
        axis = draw_shares(shares, ["drawn", "one_hot"], ["length 10", "length 20"], "t").axes[0]
        written = {text.get_position(): text.get_text() for text in axis.texts}
        assert written == {(0, 0): "100", (1, 0): "99.9", (0, 1): "50", (1, 1): "0"}
        assert axis.images[0].get_clim() == (0, 1)
        assert [text.get_text() for text in axis.get_yticklabels()] == ["drawn", "one hot"]


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (1.0, 1, "100"),
        (0.9996, 1, "99.9"),
        (0.99999, 2, "99.99"),
        (0.0, 1, "0"),
        (0.0001, 1, "0.1"),
        (0.7, 1, "70"),
        (0.123, 1, "12.3"),
    ],
)
def test_only_all_of_it_reads_a_hundred_and_only_nothing_of_it_zero(share, digits, text):
    assert per_cent(share, digits) == text


class TestMaps:
    VALUES = np.array([[0.0, 3.0, np.nan], [0.5, 40.0, 800.0]])

    def a_map(self, **more) -> Map:
        return Map(
            "ntm $x", "repeats", "length", [5, 10, 20], [10, 20], self.VALUES, "bits", **more
        )

    def test_writes_every_value_that_is_known_in_its_cell(self):
        axis = draw_maps([self.a_map()], "t").axes[0]
        written = {text.get_position(): text.get_text() for text in axis.texts}
        assert written == {(0, 0): "0", (1, 0): "3", (0, 1): "0.5", (1, 1): "40", (2, 1): "800"}
        assert [text.get_text() for text in axis.get_xticklabels()] == ["5", "10", "20"]
        assert [text.get_text() for text in axis.get_yticklabels()] == ["10", "20"]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("repeats", "length")

    def test_frames_what_was_trained_on(self):
        (frame,) = draw_maps([self.a_map(marked=((1, 10), (1, 10)))], "").axes[0].patches
        assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((-0.5, -0.5), 2, 1)
        assert not draw_maps([self.a_map(marked=((1, 3), (1, 10)))], "").axes[0].patches

    def test_several_share_a_scale_and_a_spare_place_stays_empty(self):
        figure = draw_maps([self.a_map(), self.a_map(), self.a_map()], "")
        limits = {image.get_clim() for axis in figure.axes[:3] for image in axis.images}
        assert limits == {(0.0, 800.0)}
        assert not figure.axes[3].axison
        image_array(figure)

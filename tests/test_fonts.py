import pathlib
import types

import matplotlib
import numpy as np
import pytest

from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, evaluate_voc
from ssd_jax.visualize import fonts
from ssd_jax.visualize.boxes import draw_boxes
from ssd_jax.visualize.evaluation import plot_precision_recall

STIX = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
# STIX has the first and not the second, DejaVu Sans neither.
IN_STIX, NOWHERE = "⌖", "猫"
BOX = np.array([[0.25, 0.25, 0.75, 0.75]])


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Sets the fonts of the system; at first STIX, and a file that is no font."""

    def install(*files):
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: list(files))
        forget()

    def forget():
        fonts._files_of.cache_clear()
        fonts._installed.cache_clear()
        fonts._codes.cache_clear()

    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    install(str(STIX), str(tmp_path / "damaged.ttf"))
    yield install
    forget()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cat 0.9", [("cat 0.9", "DejaVu Sans")]),
        ("кот", [("кот", "DejaVu Sans")]),
        (f"{IN_STIX} 0.9", [(IN_STIX, "STIXGeneral"), (" 0.9", "DejaVu Sans")]),
        (f"{NOWHERE}{IN_STIX}", [(NOWHERE, "DejaVu Sans"), (IN_STIX, "STIXGeneral")]),
        ("", []),
    ],
)
def test_each_part_of_a_name_is_drawn_in_a_font_that_has_it(installed, text, parts):
    found = [(part, font.getname()[0]) for part, font in fonts.runs_of(text, 12)]
    assert found == parts


@pytest.mark.parametrize(
    ("styles", "chosen"),
    [
        (["Bold", "Light", "Regular"], "Regular"),
        (["Bold", "Light", "Medium Italic"], "Light"),
        (["Bold", "Oblique"], None),
    ],
)
def test_a_regular_font_is_preferred_to_a_light_one_and_a_bold_one_not_used(
    installed, monkeypatch, styles, chosen
):
    installed(*styles)

    def open_font(file):
        given = str(STIX) if file in styles else file
        style = file if file in styles else "Book"
        charmap = real(given).get_charmap()
        return types.SimpleNamespace(scalable=True, style_name=style, get_charmap=lambda: charmap)

    real = matplotlib.ft2font.FT2Font
    monkeypatch.setattr("matplotlib.ft2font.FT2Font", open_font)
    assert fonts._files_of(frozenset(IN_STIX))[1:] == ([chosen] if chosen else [])


def test_plots_look_for_characters_in_installed_fonts_after_dejavu(installed):
    assert fonts.families_of(["cat", "кот", NOWHERE]) == ["DejaVu Sans"]
    assert fonts.families_of(["cat", NOWHERE + IN_STIX]) == ["DejaVu Sans", "STIXGeneral"]
    installed()
    assert fonts.families_of([IN_STIX]) == ["DejaVu Sans"]


def test_a_box_shows_the_name_and_not_a_square(installed):
    image = np.full((400, 400, 3), 128, np.uint8)
    drawn = draw_boxes(image, BOX, np.array([0]), classes=[IN_STIX])
    installed()
    assert np.any(drawn != draw_boxes(image, BOX, np.array([0]), classes=[IN_STIX]))


def test_a_plot_shows_the_name_and_warns_of_no_missing_one(installed, tmp_path):
    truth = GroundTruth(BOX, np.array([0]), np.array([False]))
    found = ScoredBoxes(BOX, np.array([0.9]), np.array([0]))
    result = evaluate_voc([truth], [found], num_classes=1, plus_one=False)
    pictures = []
    for name, fonts_of_system in ((IN_STIX, [str(STIX)]), (IN_STIX, []), (NOWHERE, [])):
        installed(*fonts_of_system)
        plot_precision_recall(result, [name], tmp_path / "pr.png")
        pictures.append((tmp_path / "pr.png").read_bytes())
    assert len(set(pictures)) == 3

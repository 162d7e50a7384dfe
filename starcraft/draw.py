"""A picture of a battle: units by type, bars, shots and terrain, as an array.

    from starcraft.draw import draw
    picture = draw(sim.units[0], sim.world, sim.type_names)     # (H, W, 3) uint8

Needs Pillow besides numpy, and only when it draws. The shapes are data, so that others can draw the
same ones: extras/watch.html does, in a browser.
"""

import numpy as np

from .maps import FLYING

# Okabe and Ito's colours, told apart by everyone.
SIDES = "#0072B2", "#D55E00"  # allies, enemies
HEALTH, SHIELD, ENERGY = "#009E73", "#56B4E9", "#CC79A7"
GROUND, WALL, INK, EMPTY = "#F4F1EA", "#CFC8B8", "#222222", "#FFFFFF"
SHARPNESS = 3  # everything is drawn so many times as large, then made smaller: smooth edges
MARGIN = 2.0  # cells round the units
SHOWN_LARGER = 1.25  # a Marine's body is 0.75 cells wide: hard to see at its true size

# Each unit seen from above, looking along x, in units of its radius: what is drawn one after the
# other. Areas and discs are filled with the side's colour and outlined, lines drawn in ink.
# ["area", x, y, x, y, ...]   ["disc", x, y, radius]   ["line", width, x, y, x, y, ...]
# fmt: off
SHAPES = {
    "Marine": [["line", 0.34, 0.1, -0.45, 1.5, -0.45], ["disc", 0, 0, 0.8],
               ["line", 0.26, 0.25, -0.3, 0.25, 0.3]],
    "Marauder": [["line", 0.3, 0.3, -0.8, 1.15, -0.8], ["line", 0.3, 0.3, 0.8, 1.15, 0.8],
                 ["area", 0.35, -1.15, 0.35, 1.15, -0.55, 1.15, -0.8, 0, -0.55, -1.15],
                 ["disc", 0.1, 0, 0.45]],
    "Medivac": [["area", 1.3, 0, 0.5, 0.5, 0.1, 1.25, -0.4, 1.25, -0.5, 0.5, -1.1, 0.4,
                 -1.1, -0.4, -0.5, -0.5, -0.4, -1.25, 0.1, -1.25, 0.5, -0.5],
                ["line", 0.24, -0.45, 0, 0.45, 0], ["line", 0.24, 0, -0.45, 0, 0.45]],
    "Stalker": [["line", 0.22, 0.2, 0.3, 0.7, 1.1, 1.3, 0.9],
                ["line", 0.22, 0.2, -0.3, 0.7, -1.1, 1.3, -0.9],
                ["line", 0.22, -0.2, 0.3, -0.7, 1.1, -1.2, 0.9],
                ["line", 0.22, -0.2, -0.3, -0.7, -1.1, -1.2, -0.9],
                ["area", 0.9, 0, 0, 0.65, -0.75, 0.35, -0.75, -0.35, 0, -0.65]],
    "Zealot": [["line", 0.22, 0.2, 0.85, 1.45, 0.55], ["line", 0.22, 0.2, -0.85, 1.45, -0.55],
               ["area", 0.5, -0.4, 0.2, -1.1, -0.5, -0.7, -0.6, 0, -0.5, 0.7, 0.2, 1.1, 0.5, 0.4],
               ["disc", 0.1, 0, 0.4]],
    "Colossus": [["line", 0.14, 0, 0.2, 0.6, 1.1, 1.3, 1.2],
                 ["line", 0.14, 0, -0.2, 0.6, -1.1, 1.3, -1.2],
                 ["line", 0.14, 0, 0.2, -0.6, 1.1, -1.3, 1.2],
                 ["line", 0.14, 0, -0.2, -0.6, -1.1, -1.3, -1.2],
                 ["area", 0.35, -0.75, 0.6, 0, 0.35, 0.75, -0.35, 0.75, -0.5, 0, -0.35, -0.75],
                 ["line", 0.12, 0.1, -0.45, 0.1, 0.45]],
    "Zergling": [["line", 0.24, 0.3, 0.3, 0.9, 0.8, 1.4, 0.3],
                 ["line", 0.24, 0.3, -0.3, 0.9, -0.8, 1.4, -0.3],
                 ["area", 0.9, 0, 0.2, 0.6, -0.5, 0.45, -1.3, 0, -0.5, -0.45, 0.2, -0.6]],
    "Baneling": [["disc", 0, 0, 1.1], ["disc", 0.35, 0.3, 0.3], ["disc", -0.4, 0.35, 0.25],
                 ["disc", -0.15, -0.5, 0.33], ["disc", 1.05, 0, 0.3]],
    "Hydralisk": [["line", 0.4, -0.2, 0, -0.8, 0.45, -1.3, 0.1, -1.6, -0.5],
                  ["line", 0.2, 0.1, 0.6, 0.8, 0.95], ["line", 0.2, 0.1, -0.6, 0.8, -0.95],
                  ["area", 1.0, 0, 0.3, 0.6, -0.5, 0.55, -0.3, 0, -0.5, -0.55, 0.3, -0.6]],
    "SpineCrawler": [["area", *(x for k in range(12) for x in (
                         (0.6, 1.15)[k % 2] * np.cos(k * np.pi / 6).round(3),
                         (0.6, 1.15)[k % 2] * np.sin(k * np.pi / 6).round(3)))],
                     ["line", 0.3, 0, 0, 0.5, 0.35, 1.0, 0.1, 1.5, 0]],
}
# fmt: on


def headings(units):
    """(U,) radians: towards the target, else across to the other side."""
    aim = units[np.maximum(units["target"], 0)]
    angle = np.arctan2(aim["y"] - units["y"], aim["x"] - units["x"])
    return np.where(units["target"] >= 0, angle, np.pi * (units["side"] == 1))


def shots(units, world):
    """Pairs (who, at whom): a shot in flight, a weapon just let go, or a healing beam."""
    kinds, target = world["kinds"][units["kind"]], units["target"]
    flies = (units["flight"] >= 0) & (kinds["second_hit"] == 0)
    recent = units["cooldown"] > kinds["period"] - kinds["damage_point"] - 2
    at_once = (kinds["period"] > 0) & (kinds["flight"] == 0) & (kinds["missile_speed"] == 0)
    strikes = at_once & recent & (units["windup"] < 0) & (target >= 0)
    aim = units[np.maximum(target, 0)]
    strikes = strikes & (aim["health"] > 0)
    far = np.hypot(aim["x"] - units["x"], aim["y"] - units["y"]) - aim["radius"] - units["radius"]
    missing = aim["health"] < world["kinds"][aim["kind"]]["health"]
    heals = (kinds["heal_rate"] > 0) & (target >= 0) & missing & (far <= kinds["heal_range"] + 0.1)
    at = np.where(flies, units["flight_target"], target)
    there = flies | ((strikes | heals) & (units["health"] > 0))
    return [(int(i), int(at[i])) for i in np.flatnonzero(there & (at >= 0))]


def window(units):
    """(x0, y0, x1, y1), the part of the map to be shown for UNIT records (U,) or (T, U)."""
    x, y = units["x"][units["health"] > 0], units["y"][units["health"] > 0]
    low, high = (np.array([f(x), f(y)]) for f in (np.min, np.max))
    room = np.maximum(MARGIN, (np.array([12.0, 8.0]) - (high - low)) / 2)  # no closer than that
    return *(low - room).tolist(), *(high + room).tolist()


def draw(units, world, names, box=None, cell=20):
    """One moment of one battle.

    units: (U,) UNIT records, allies first. world: the simulator's `world` record. names: the unit
    types in the order of world["kinds"]. box: (x0, y0, x1, y1) in cells, what is shown; None: the
    whole map. cell: pixels per cell. -> (H, W, 3) uint8, north above. Raises ImportError without
    Pillow.
    """
    from PIL import Image, ImageDraw

    X, Y = world["walkable"].shape
    x0, y0, x1, y1 = box or (0, 0, X, Y)
    scale = cell * SHARPNESS
    width, height = (max(round(size * cell), 1) for size in (x1 - x0, y1 - y0))
    image = Image.new("RGB", (width * SHARPNESS, height * SHARPNESS), WALL)
    pen = ImageDraw.Draw(image, "RGBA")

    def at(x, y):
        return (x - x0) * scale, (y1 - y) * scale

    for x, y in np.argwhere(world["walkable"]):
        pen.rectangle((*at(x, y + 1), *at(x + 1, y)), fill=GROUND)
    angles, alive = headings(units), units["health"] > 0
    for i in sorted(np.flatnonzero(alive), key=lambda i: units[i]["layers"] & FLYING):
        shape(pen, at, scale, units[i], angles[i], names[units[i]["kind"]])
    for i, j in shots(units, world):
        u, v = units[i], units[j]
        heals = world["kinds"][u["kind"]]["heal_rate"] > 0
        colour = HEALTH if heals else SIDES[u["side"]]
        line = {"fill": colour + "B0", "width": scale // 9}
        pen.line((at(u["x"], u["y"]), at(v["x"], v["y"])), **line)
        across = world["kinds"][u["kind"]]["line_length"] / 2  # of what a Colossus hits, to a side
        gap = np.hypot(v["x"] - u["x"], v["y"] - u["y"])
        if across > 0 and gap > 0:
            x, y = (v["y"] - u["y"]) * across / gap, (u["x"] - v["x"]) * across / gap
            pen.line((at(v["x"] - x, v["y"] - y), at(v["x"] + x, v["y"] + y)), **line)
    for i in np.flatnonzero(alive):
        bars(pen, at, scale, units[i], world["kinds"][units[i]["kind"]])
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def shape(pen, at, scale, u, angle, name):
    """One unit's silhouette; a disc for a type that has none."""
    radius, edge = u["radius"] * SHOWN_LARGER, max(scale // 16, 1)
    cos, sin = radius * np.cos(angle), radius * np.sin(angle)
    for kind, *numbers in SHAPES.get(name, [["disc", 0, 0, 1]]):
        flat = {"area": numbers, "disc": numbers[:2], "line": numbers[1:]}[kind]
        corners = np.reshape(flat, (-1, 2))  # (2 * corners,) -> (corners, 2)
        points = [at(u["x"] + x * cos - y * sin, u["y"] + x * sin + y * cos) for x, y in corners]
        if kind == "disc":
            pen.circle(points[0], numbers[2] * radius * scale, SIDES[u["side"]], INK, edge)
        elif kind == "area":
            pen.polygon(points, SIDES[u["side"]], INK, edge)
        else:
            pen.line(points, INK, max(round(numbers[0] * radius * scale), 1), joint="curve")


def bars(pen, at, scale, u, kind):
    """Shield, health and energy above the unit, each as the share that is left."""
    half, thick = max(u["radius"], 0.45), 0.14
    y = u["y"] + 1.25 * u["radius"] + 0.2
    for field, most, colour in (
        ("energy", "energy_max", ENERGY),
        ("health", "health", HEALTH),
        ("shield", "shield", SHIELD),
    ):
        if kind[most] > 0:
            share = min(u[field] / kind[most], 1)
            left, right = u["x"] - half, u["x"] + half
            pen.rectangle((*at(left, y + thick), *at(right, y)), EMPTY, INK, max(scale // 40, 1))
            if share > 0:
                end = left + 2 * half * share
                pen.rectangle((*at(left, y + thick), *at(end, y)), colour)
            y += thick
